// Chooses the next thread or the next piece of asynchronous work.
#include <map>

#include "emu/engine.h"

namespace longcat_ops::emu {
namespace {

// "mbarrier at offset 16: 1 of 2 arrivals pending, tx 128, phase 3, 4 threads waiting"
std::string describe_barrier(const MBarrier& barrier, uint32_t smem_base) {
  return "mbarrier at offset " + std::to_string(barrier.address - smem_base) + ": " + std::to_string(barrier.pending) +
         " of " + std::to_string(barrier.expected) + " arrivals pending, tx " + std::to_string(barrier.tx) +
         ", phase " + std::to_string(barrier.phase) + ", " + std::to_string(barrier.waiters.size()) +
         " threads waiting";
}

}  // namespace

void Engine::run() {
  start_needed = true;
  while (!error) {
    if (start_needed) start_ctas();
    const bool async = choose_async();
    if (async)
      run_async();
    else if (!runnable.empty())
      run_thread(random.below(runnable.size()));
    else if (start_needed && !streams.empty())
      continue;  // an early start that waits for its turn
    else if (!finish_grids()) {
      bool idle = true;
      for (const auto& [device, queue] : streams) idle &= queue.empty();
      if (idle) break;
      when_stuck();
    }
  }
  if (error) {
    cancel_threads();
    throw Error(*error);
  }
  // The host has seen everything end, so whatever it launches next comes after all of it.
  VectorClock all;
  for (const auto& [device, clock] : completed) all.join(clock);
  for (auto& [device, clock] : completed) clock = all;
}

bool Engine::choose_async() {
  if (pending.empty()) return false;
  if (runnable.empty()) return true;
  if (threads_first > 0) {
    --threads_first;
    return false;
  }
  if (policy == Policy::kRandom) return random.below(8) < 2;
  // Polling threads must not keep asynchronous work waiting for ever.
  constexpr uint64_t kPatience = 1000;
  return policy == Policy::kEager || polls > kPatience;
}

void Engine::run_async() {
  const size_t position = random.below(pending.size());
  const std::shared_ptr<AsyncOperation> operation = pending[position];
  ++stats.async_steps;
  polls = 0;
  bool finished = true;
  try {
    finished = operation->step();
  } catch (const Error& e) {
    error = std::make_unique<Error>(e);
  }
  if (!finished) return;
  // NOTE: a step may enqueue others, but only behind this one.
  pending[position] = std::move(pending.back());
  pending.pop_back();
  finish_grids();
}

void Engine::run_thread(size_t position) {
  Thread* thread = runnable[position];
  runnable[position] = runnable.back();
  runnable.pop_back();
  ++stats.switches;
  current.thread = thread;
  thread->fiber.enter();
  current.thread = nullptr;
  if (!thread->done) return;
  thread->cta->cluster->thread_exits(*thread);
  if (--thread->cta->live_threads > 0) return;
  finish_ctas();
  finish_grids();
}

void Engine::when_stuck() {
  // Loops with a timeout may give up now.
  bool timed = false;
  for (Thread* thread : spinning) timed |= thread->read_timer;
  if (timed) {
    timer_ns += 1'000'000'000;
    wake_all(spinning);
    return;
  }
  error = std::make_unique<Error>("deadlock", deadlock_report());
}

std::string Engine::deadlock_report() const {
  std::map<std::string, uint32_t> waiting;
  for (const auto& cta : ctas)
    for (const auto& thread : cta->threads)
      if (!thread->done)
        ++waiting["device " + std::to_string(cta->grid->launch.device) + " CTA " + std::to_string(cta->index) + " of " +
                  cta->grid->launch.name + ": " + (thread->blocked_on != nullptr ? thread->blocked_on : "?") + " at " +
                  describe(thread->blocked_at)];
  std::string text = "no thread can go on";
  for (const auto& [what, count] : waiting) text += "\n  " + std::to_string(count) + " threads of " + what;
  for (const auto& cta : ctas) {
    for (const MBarrier& barrier : cta->barriers.all())
      if (!barrier.waiters.empty())
        text += "\n  CTA " + std::to_string(cta->index) + " " + describe_barrier(barrier, cta->smem_base);
    for (size_t id = 0; id < cta->named.size(); ++id)
      if (cta->named[id].count > 0)
        text += "\n  CTA " + std::to_string(cta->index) + " barrier " + std::to_string(id) + ": " +
                std::to_string(cta->named[id].count) + " of " + std::to_string(cta->named[id].expected) +
                " threads have come";
    if (!cta->register_waiters.empty())
      text += "\n  CTA " + std::to_string(cta->index) + ": " + std::to_string(cta->free_registers) + " registers free";
  }
  for (const auto& cta : ctas)
    if (cta->cluster->size() > 1) text += cta->cluster->describe_waiting(*cta);
  for (const auto& [device, queue] : streams)
    for (const auto& grid : queue)
      if (grid->started > 0 && grid->started < grid->launch.grid)
        text += "\n  " + std::to_string(grid->launch.grid - grid->started) + " CTAs of " + grid->launch.name +
                " have not started: at most " + std::to_string(settings.max_resident_ctas) + " are resident";
  return text;
}

// Lets every started thread unwind, so that what it holds is freed.
void Engine::cancel_threads() {
  cancelling = true;
  for (const auto& cta : ctas)
    for (const auto& thread : cta->threads)
      while (!thread->done && thread->fiber.started()) {
        current.thread = thread.get();
        thread->fiber.enter();
        current.thread = nullptr;
      }
  runnable.clear();
  spinning.clear();
  pending.clear();
  ctas.clear();
  streams.clear();
}

}  // namespace longcat_ops::emu
