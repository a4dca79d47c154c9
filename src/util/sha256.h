// SHA-256. No domain words.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <format>
#include <memory>
#include <string>
#include <string_view>

#include <openssl/evp.h>

#include "util/error.h"

namespace agentmachine {

/// Of what comes in pieces.
class Sha256 {
 public:
  Sha256() { check(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr)); }
  void add(const void* data, std::size_t size) { check(EVP_DigestUpdate(context_.get(), data, size)); }
  void addZeros(std::uint64_t count) {
    static constexpr std::array<char, 65536> zeros{};
    for (; count > 0; count -= std::min<std::uint64_t>(count, zeros.size()))
      add(zeros.data(), std::min<std::uint64_t>(count, zeros.size()));
  }
  std::string hex() {
    std::array<unsigned char, 32> digest{};
    check(EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr));
    std::string text;
    for (const auto byte : digest) text += std::format("{:02x}", byte);
    return text;
  }

 private:
  static void check(int ok) {
    if (ok != 1) throw Error("compute SHA-256: libcrypto failed");
  }
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_{EVP_MD_CTX_new(), EVP_MD_CTX_free};
};

/// Lower case hexadecimal SHA-256 of `text`.
inline std::string sha256(std::string_view text) {
  Sha256 hash;
  hash.add(text.data(), text.size());
  return hash.hex();
}

}  // namespace agentmachine
