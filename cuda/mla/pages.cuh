// The place of a latent row: the page that a table names for its sequence and position.
#pragma once

#include "common/latent_pages.h"
#include "ptx/ptx.cuh"

namespace longcat_ops::mla {

// The pages that tokens find by their sequence and position.
struct PageView {
  const int32_t* table;  // [sequences, width]
  int64_t sequences, width, pages;
};

// Whether the table has an entry for it.
LC_DEVICE bool has_entry(const PageView& view, int64_t sequence, int64_t position) {
  return sequence >= 0 && sequence < view.sequences && position >= 0 && position / kPageRows < view.width;
}

// The page of a place; -1: there is none.
LC_DEVICE int64_t page_of(const PageView& view, int64_t sequence, int64_t position) {
  if (!has_entry(view, sequence, position)) return -1;
  const int64_t page = ptx::load_global(view.table + sequence * view.width + position / kPageRows);
  return page < view.pages ? page : -1;
}

}  // namespace longcat_ops::mla
