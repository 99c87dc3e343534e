// The samples of one RoI near one tile of a map: a bounded window of them at a time, tabled once a warp.
#pragma once

#include "problem.cuh"

namespace mrrcnn {

constexpr int kTileWidth = kWarps;
constexpr int kTileHeight = kWarp / kTileWidth;

struct Tile {
  int level;
  int64_t image;
  int y, x;
};

// Sampling adapted to the box puts at most two samples on a pixel: a window then holds all that reach a tile.
template <class T>
constexpr int kWindowRows = 64 / sizeof(T);
template <class T>
constexpr int kWindowColumns = 128 / sizeof(T);

// Shared by the lanes of a warp. `rows` and `columns` are the RoI's samples near the tile, (row, column) is
// the first in the window.
template <class T>
struct Window {
  int64_t k;
  Roi<T> roi;
  T share;
  Span rows, columns;
  int row, column;
  Tap<T> row_taps[kWindowRows<T>], column_taps[kWindowColumns<T>];
  Tap<T> mask_rows[kWindowRows<T>], mask_columns[kWindowColumns<T>];
};

__device__ inline unsigned bits_below(int n) { return n <= 0 ? 0u : n >= kWarp ? kAllLanes : (1u << n) - 1; }

// The samples of a bin as bits of a window that starts at sample `origin`.
__device__ inline unsigned bits_of_bin(int bin, int samples, int origin) {
  return bits_below((bin + 1) * samples - origin) & ~bits_below(bin * samples - origin);
}

// One lane's view while its warp goes through the windows of a RoI. The lane owns one pixel of the tile and
// walks through the bins that reach it.
struct Cursor {
  unsigned row_bits = 0, column_bits = 0;  // the window's samples that touch the lane's pixel
  int next = -1;                           // the next bin of theirs, row by row; -1 when the RoI is done

  __device__ bool open() const { return next >= 0; }
};

// Whether RoI k may reach the tile.
template <class F, class T>
__device__ bool may_touch(const Problem<F, T>& problem, const Tile& tile, int64_t k) {
  // Most RoIs are of another level or image or lie elsewhere: they cost a few reads, all on their way at once.
  const T* box = problem.rois + 5 * k;
  const int64_t of_level = problem.level ? problem.level[k] : 0;
  const T image = box[0], x0 = box[1], y0 = box[2], x1 = box[3], y1 = box[4];
  const Level<F, T>& level = problem.levels[tile.level];
  if (of_level != tile.level || image < T(tile.image) || image >= T(tile.image + 1)) return false;
  if (passes_by(y0, y1, level.scale, tile.y, tile.y + kTileHeight)) return false;
  if (passes_by(x0, x1, level.scale, tile.x, tile.x + kTileWidth)) return false;
  Roi<T> roi;
  if (find_roi(problem, k, &roi) != Found::yes || roi.image != tile.image) return false;
  const Settings& s = problem.settings;
  const Span rows = samples_near(roi.y, s.pooled_h, tile.y, tile.y + kTileHeight, level.height);
  const Span columns = samples_near(roi.x, s.pooled_w, tile.x, tile.x + kTileWidth, level.width);
  return rows.begin < rows.end && columns.begin < columns.end;
}

// Tables the window at the cursor and finds the samples that touch each lane's pixel.
template <class F, class T>
__device__ void open_window(const Problem<F, T>& problem, const Tile& tile, Window<T>& window,
                            Cursor& cursor) {
  const Settings& s = problem.settings;
  const Level<F, T>& level = problem.levels[tile.level];
  const Roi<T>& roi = window.roi;
  __syncwarp();  // all lanes are done with the window before, and see where this one begins
  const int lane = threadIdx.x % kWarp, r = window.row + lane, c = window.column + lane;
  Tap<T> row{0, 0, T(0), T(0), false}, column = row;
  if (lane < kWindowRows<T> && r < window.rows.end) {
    window.row_taps[lane] = row = feature_tap(roi.y, r, level.height);
    if (problem.masks) {
      window.mask_rows[lane] = mask_tap<T>(r, s.pooled_h * roi.y.samples, s.mask_h, s.half_pixel);
    }
  }
  if (lane < kWindowColumns<T> && c < window.columns.end) {
    window.column_taps[lane] = column = feature_tap(roi.x, c, level.width);
    if (problem.masks) {
      window.mask_columns[lane] = mask_tap<T>(c, s.pooled_w * roi.x.samples, s.mask_w, s.half_pixel);
    }
  }
  for (int n = 0; n < kTileHeight; ++n) {
    const unsigned bits = __ballot_sync(kAllLanes, touches(row, tile.y + n));
    if (n == lane / kTileWidth) cursor.row_bits = bits;
  }
  for (int n = 0; n < kTileWidth; ++n) {
    const unsigned bits = __ballot_sync(kAllLanes, touches(column, tile.x + n));
    if (n == lane % kTileWidth) cursor.column_bits = bits;
  }
  cursor.next = 0;
  __syncwarp();
}

// Starts with the first window of RoI k near the tile. To be called by a whole warp, as all of these are.
template <class F, class T>
__device__ void open_roi(const Problem<F, T>& problem, const Tile& tile, int64_t k, Window<T>& window,
                         Cursor& cursor) {
  Roi<T> roi;
  find_roi(problem, k, &roi);
  const Settings& s = problem.settings;
  const Level<F, T>& level = problem.levels[tile.level];
  const Span rows = samples_near(roi.y, s.pooled_h, tile.y, tile.y + kTileHeight, level.height);
  const Span columns = samples_near(roi.x, s.pooled_w, tile.x, tile.x + kTileWidth, level.width);
  __syncwarp();
  if (threadIdx.x % kWarp == 0) {
    window.k = k;
    window.roi = roi;
    window.share = share_of_sample(roi);
    window.rows = rows;
    window.columns = columns;
    window.row = rows.begin;
    window.column = columns.begin;
  }
  open_window(problem, tile, window, cursor);
}

// Moves on to the RoI's next window, if there is one.
template <class F, class T>
__device__ void next_window(const Problem<F, T>& problem, const Tile& tile, Window<T>& window,
                            Cursor& cursor) {
  const bool last_column = window.column + kWindowColumns<T> >= window.columns.end;
  const bool any = !last_column || window.row + kWindowRows<T> < window.rows.end;
  __syncwarp();
  if (threadIdx.x % kWarp == 0) {
    window.column = last_column ? window.columns.begin : window.column + kWindowColumns<T>;
    window.row += last_column ? kWindowRows<T> : 0;
  }
  if (any) {
    open_window(problem, tile, window, cursor);
  } else {
    cursor.next = -1;
  }
}

// The weight of pixel (y, x) in a bin, of whose samples `rows` and `columns` touch it.
template <class T>
__device__ T weight_in_window(const Window<T>& window, unsigned rows, unsigned columns, int y, int x,
                              const T* mask, int mask_w) {
  T sum = T(0);
  for (; rows; rows &= rows - 1) {
    const int r = __ffs(rows) - 1;
    T of_row = T(0);
    for (unsigned left = columns; left; left &= left - 1) {
      const int c = __ffs(left) - 1;
      const T value = mask ? mask_value(mask, mask_w, window.mask_rows[r], window.mask_columns[c]) : T(1);
      of_row += weight_on(window.column_taps[c], x) * value;
    }
    sum += weight_on(window.row_taps[r], y) * of_row;
  }
  return sum * window.share;
}

}  // namespace mrrcnn
