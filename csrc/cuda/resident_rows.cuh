// Rows of a map that a block of a cluster holds in its shared memory, beside those of its neighbours.
#pragma once

#include "cuda/tile.cuh"

namespace dsn::cuda {

// A sample's pixels from the tile's first row on; the tile has whole rows.
template <class T>
__device__ inline T* first_pixel(const Map& map, int sample, const MapTile& tile) {
  return static_cast<T*>(map.data) + sample * map.sample_stride +
         static_cast<int64_t>(tile.y) * map.width * map.channels;
}

// Starts to copy the tile's pixels, [pixel][stride], with zeros behind the map's channels up to `groups`.
template <class T>
__device__ inline void fetch_rows(const Map& map, int sample, const MapTile& tile, T* to, int stride, int groups) {
  const T* from = first_pixel<T>(map, sample, tile);
  for (int i = threadIdx.x; i < tile.pixels() * groups; i += blockDim.x) {
    const int pixel = i / groups, group = i % groups;
    T* at = to + pixel * stride + group * kGroup;
    if (group < map.channels / kGroup)
      ptx::cp_async<kGroup * sizeof(T)>(ptx::shared_address(at),
                                        from + static_cast<int64_t>(pixel) * map.channels + group * kGroup);
    else
      store_quad<T>(at, 0, {});
  }
}
template <class T>
__device__ inline void store_rows(const Map& map, int sample, const MapTile& tile, const T* from, int stride) {
  T* to = first_pixel<T>(map, sample, tile);
  const int groups = map.channels / kGroup;
  for (int i = threadIdx.x; i < tile.pixels() * groups; i += blockDim.x) {
    const int pixel = i / groups, group = i % groups;
    store_quad<T>(to, static_cast<int64_t>(pixel) * map.channels + group * kGroup,
                  load_quad<T>(from, pixel * stride + group * kGroup));
  }
}
// Zeros in the first `groups` of so many cells.
template <class T>
__device__ inline void clear_cells(T* cells, int count, int stride, int groups) {
  for (int i = threadIdx.x; i < count * groups; i += blockDim.x)
    store_quad<T>(cells, i / groups * stride + i % groups * kGroup, {});
}

// Cells of a tile and a frame around them; the neighbours' frames hold the rows at its edges.
template <class T>
struct FramedRows {
  T* cells;               // [cell][stride]
  T *above, *below;       // the neighbours' cells, or null
  int rows, stride;       // of a whole tile; elements from one cell to the next
  int own_rows, columns;  // of this tile

  __device__ FramedRows(T* cells, int rank, int blocks, int rows, int stride, const MapTile& tile)
      : cells(cells),
        above(rank > 0 ? ptx::map_shared(cells, rank - 1) : nullptr),
        below(rank + 1 < blocks ? ptx::map_shared(cells, rank + 1) : nullptr),
        rows(rows),
        stride(stride),
        own_rows(tile.rows),
        columns(tile.columns) {}

  // A channel of a pixel, for this block and the neighbour whose frame it lies in.
  __device__ void write(int pixel, int channel, float v) const {
    const int y = pixel / columns, x = pixel % columns + 1, pitch = columns + 2;
    const T value = Numeric<T>::from(v);
    cells[((y + 1) * pitch + x) * stride + channel] = value;
    if (above && y == 0) above[((rows + 1) * pitch + x) * stride + channel] = value;
    if (below && y == own_rows - 1) below[x * stride + channel] = value;
  }
};

}  // namespace dsn::cuda
