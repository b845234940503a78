#include "simt/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <stdexcept>

namespace dsn::simt {

Records::Records(size_t bytes) : bytes_((bytes / kWord + 2) * sizeof(Entry)) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  entries_ = static_cast<Entry*>(memory);  // zero pages: no generation is 0
}

Records::~Records() { munmap(entries_, bytes_); }

Regions& regions() {
  static Regions all;
  return all;
}

void Regions::add(uintptr_t begin, size_t bytes, const std::string& name, bool writable) {
  const uintptr_t end = begin + bytes;
  auto next = std::upper_bound(regions_.begin(), regions_.end(), begin,
                               [](uintptr_t address, const auto& region) { return address < region->begin; });
  if (next != regions_.begin()) {
    Region& before = **(next - 1);
    if (before.begin == begin && before.end == end) {
      ++before.holders;
      before.writable |= writable;
      if (before.writable && !before.records) before.records = std::make_unique<Records>(bytes);
      return;
    }
    if (before.end > begin) {
      throw std::invalid_argument(name + ": overlaps the buffer " + before.name + ", pass the whole of it once");
    }
  }
  if (next != regions_.end() && (*next)->begin < end) {
    throw std::invalid_argument(name + ": overlaps the buffer " + (*next)->name + ", pass the whole of it once");
  }
  auto records = writable ? std::make_unique<Records>(bytes) : nullptr;
  regions_.insert(next, std::make_unique<Region>(Region{begin, end, name, writable, 1, std::move(records)}));
}

void Regions::remove(uintptr_t begin) {
  auto found = std::find_if(regions_.begin(), regions_.end(), [=](const auto& r) { return r->begin == begin; });
  if (found != regions_.end() && --(*found)->holders == 0) regions_.erase(found);
}

Region* Regions::find(uintptr_t address) const {
  size_t low = 0;
  size_t high = regions_.size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (address < regions_[middle]->begin) {
      high = middle;
    } else if (address >= regions_[middle]->end) {
      low = middle + 1;
    } else {
      return regions_[middle].get();
    }
  }
  return nullptr;
}

std::string Regions::nearest(uintptr_t address) const {
  std::string text = "no buffer is known";
  uintptr_t best = UINTPTR_MAX;
  for (const auto& region : regions_) {
    const bool above = address >= region->end;
    const uintptr_t distance = above ? address - region->end : region->begin - address;
    if (distance >= best) continue;
    best = distance;
    text = std::to_string(distance) + " bytes " + (above ? "past the end" : "before the start") + " of " +
           region->name + " (" + std::to_string(region->end - region->begin) + " bytes)";
  }
  return text;
}

}  // namespace dsn::simt
