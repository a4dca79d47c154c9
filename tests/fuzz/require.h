// What the fuzz targets share. A property that does not hold is a crash, which libFuzzer keeps the input of.
#pragma once
#include <cstdlib>

inline void require(bool condition) {
  if (!condition) std::abort();
}
