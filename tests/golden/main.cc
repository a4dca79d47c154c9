#include <gtest/gtest.h>

#include "golden.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s TESTS/GOLDEN\n", argv[0]);
    return 2;
  }
  agentmachine::registerCardGoldens(argv[1]);
  agentmachine::registerPlanGoldens(argv[1]);
  agentmachine::registerExportGoldens(argv[1]);
  agentmachine::registerCliGoldens(argv[1]);
  agentmachine::registerStateGoldens(argv[1]);
  return RUN_ALL_TESTS();
}
