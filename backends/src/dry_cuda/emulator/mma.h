// Matrix products of a warp on tensor cores (namespace nvcuda::wmma). A card spreads a matrix over the threads of a warp; here the first
// thread holds all of it and computes, and the others wait. Products of 16-bit numbers are exact, and sums are f32.
#pragma once

#include "cuda_half.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
} // namespace precision

// Rounds to the 10 bits that tensor cores keep of an f32.
inline float __float_to_tf32(float value) {
  uint32_t bits = bits_of(value);
  return isnan(value) ? value : float_of((bits + 0xfff + (bits >> 13 & 1)) & 0xffffe000);
}

template <class T>
struct Stored {
  using Type = T;
};
template <>
struct Stored<precision::tf32> {
  using Type = float;
};

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = rows * columns;
  typename Stored<T>::Type x[num_elements];
};

inline bool computes() { return lane() == 0; }

// The alignment in bytes of a matrix in memory (CUDA C++ Programming Guide, "Warp Matrix Functions").
constexpr uintptr_t ALIGNMENT = 32;

// Checks where a matrix is and the distance of its rows, which is a multiple of 16 bytes.
template <class T>
void check(const T *matrix, unsigned stride) {
  if (uintptr_t(matrix) % ALIGNMENT) {
    refuse("a matrix that a warp loads or stores is not aligned to 32 bytes");
  }
  if (stride * sizeof(T) % 16) {
    refuse("the rows of a matrix that a warp loads or stores are not a multiple of 16 bytes apart");
  }
}

// Runs `move` in the first thread of the warp, for all of them.
template <class F>
void once(F move) {
  wait_for_warp(false);
  if (computes()) {
    act_for_warp(true);
    move();
    act_for_warp(false);
  }
  wait_for_warp(false);
}

template <class F, class T>
void fill_fragment(F &matrix, T value) {
  for (auto &element : matrix.x) {
    element = value;
  }
}

template <class F, class T>
void load(F &matrix, const T *from, unsigned stride, bool by_rows) {
  check(from, stride);
  once([&] {
    for (int index = 0; index < F::num_elements; index++) {
      unsigned row = index / F::columns, column = index % F::columns;
      matrix.x[index] = from[by_rows ? row * stride + column : column * stride + row];
    }
  });
}
template <class Use, int M, int N, int K, class T, class Layout, class U>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &matrix, const U *from, unsigned stride) {
  load(matrix, from, stride, std::is_same_v<Layout, row_major>);
}
template <class F, class U>
void load_matrix_sync(F &matrix, const U *from, unsigned stride, layout_t layout) {
  load(matrix, from, stride, layout == mem_row_major);
}

template <class F, class U>
void store_matrix_sync(U *to, const F &matrix, unsigned stride, layout_t layout) {
  check(to, stride);
  once([&] {
    for (int index = 0; index < F::num_elements; index++) {
      unsigned row = index / F::columns, column = index % F::columns;
      to[layout == mem_row_major ? row * stride + column : column * stride + row] = matrix.x[index];
    }
  });
}

template <class D, class A, class B, class C>
void mma_sync(D &sum, const A &left, const B &right, const C &start) {
  using Sum = std::conditional_t<std::is_integral_v<std::remove_reference_t<decltype(start.x[0])>>, int, float>;
  once([&] {
    for (int index = 0; index < D::num_elements; index++) {
      int row = index / D::columns, column = index % D::columns;
      Sum total = Sum(start.x[index]);
      for (int inner = 0; inner < A::columns; inner++) {
        total += Sum(left.x[row * A::columns + inner]) * Sum(right.x[inner * B::columns + column]);
      }
      sum.x[index] = total;
    }
  });
}

} // namespace nvcuda::wmma
