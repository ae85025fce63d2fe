// The tests' own macros: every TEST is a named case; the first failed CHECK ends it.
#pragma once

#include <cstdio>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "emu/ptx.h"
#include "emu/world.h"

namespace test {

struct Case {
  const char* name;
  void (*body)();
};
std::vector<Case>& cases();

struct Registration {
  Registration(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class A, class B>
void check_equal(const A& a, const B& b, const char* text, int line) {
  if (a == b) return;
  std::ostringstream out;
  out << "line " << line << ": " << text << ": " << a << " against " << b;
  throw Failure(out.str());
}

// Runs body, which must end in an emu::Error of this kind.
void check_error(const std::string& kind, const std::function<void()>& body, int line);

}  // namespace test

#define TEST(name)                                                \
  static void test_##name();                                      \
  static const test::Registration reg_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                                         \
  do {                                                                                           \
    if (!(condition)) throw test::Failure("line " + std::to_string(__LINE__) + ": " #condition); \
  } while (false)
#define CHECK_EQ(a, b) test::check_equal((a), (b), #a " == " #b, __LINE__)
#define CHECK_ERROR(kind, ...) test::check_error(kind, [&] { __VA_ARGS__; }, __LINE__)

namespace test {

namespace emu = longcat_ops::emu;
namespace ptx = longcat_ops::ptx;

constexpr emu::Policy kPolicies[] = {emu::Policy::kRandom, emu::Policy::kEager, emu::Policy::kLazy};

// Checks a value that a kernel read; the world reports a failure as a "launch" error.
inline void require(bool condition) {
  if (!condition) throw std::runtime_error("a condition in the kernel does not hold");
}

// Runs one launch in a world to its end.
template <class Body>
void run(emu::World& world, uint32_t grid, uint32_t block, uint32_t smem, Body body) {
  world.launch({.grid = grid, .block = block, .smem_bytes = smem, .registers_per_thread = 64, .body = body});
  world.synchronize();
}
template <class Body>
void run(uint32_t grid, uint32_t block, uint32_t smem, Body body) {
  emu::World world(1);
  run(world, grid, block, smem, body);
}

}  // namespace test
