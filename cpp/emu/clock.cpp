#include "emu/clock.h"

#include <algorithm>

namespace longcat_ops::emu {

VectorClock::VectorClock(const VectorClock& other) : chunks_(other.chunks_) {
  for (Chunk* chunk : chunks_)
    if (chunk != nullptr) ++chunk->references;
}

void VectorClock::release(Chunk* chunk) {
  if (chunk != nullptr && --chunk->references == 0) delete chunk;
}

VectorClock::Chunk* VectorClock::share(Chunk* chunk) {
  ++chunk->references;
  return chunk;
}

void VectorClock::make_own(Chunk*& chunk) {
  if (chunk == nullptr) {
    chunk = new Chunk{1, {}};
  } else if (chunk->references > 1) {
    --chunk->references;
    chunk = new Chunk(*chunk);
    chunk->references = 1;
  }
}

void VectorClock::clear() {
  for (Chunk* chunk : chunks_) release(chunk);
  chunks_.clear();
}

void VectorClock::raise(uint32_t component, uint32_t time) {
  if ((*this)[component] >= time) return;
  const uint32_t index = component / kChunk;
  if (index >= chunks_.size()) chunks_.resize(index + 1, nullptr);
  make_own(chunks_[index]);
  chunks_[index]->time[component % kChunk] = time;
}

void VectorClock::join(const VectorClock& other) {
  if (other.chunks_.size() > chunks_.size()) chunks_.resize(other.chunks_.size(), nullptr);
  for (size_t i = 0; i < other.chunks_.size(); ++i) {
    Chunk*& mine = chunks_[i];
    Chunk* theirs = other.chunks_[i];
    if (theirs == nullptr || theirs == mine) continue;
    bool i_cover = mine != nullptr, they_cover = true;
    for (uint32_t k = 0; mine != nullptr && k < kChunk; ++k) {
      i_cover &= mine->time[k] >= theirs->time[k];
      they_cover &= theirs->time[k] >= mine->time[k];
    }
    if (i_cover) continue;
    if (they_cover) {
      release(mine);
      mine = share(theirs);
      continue;
    }
    make_own(mine);
    for (uint32_t k = 0; k < kChunk; ++k) mine->time[k] = std::max(mine->time[k], theirs->time[k]);
  }
}

void VectorClock::meet(const VectorClock& other) {
  while (chunks_.size() > other.chunks_.size()) {
    release(chunks_.back());
    chunks_.pop_back();
  }
  for (size_t i = 0; i < chunks_.size(); ++i) {
    Chunk*& mine = chunks_[i];
    Chunk* theirs = other.chunks_[i];
    if (mine == nullptr || mine == theirs) continue;
    if (theirs == nullptr) {
      release(mine);
      mine = nullptr;
      continue;
    }
    make_own(mine);
    for (uint32_t k = 0; k < kChunk; ++k) mine->time[k] = std::min(mine->time[k], theirs->time[k]);
  }
}

}  // namespace longcat_ops::emu
