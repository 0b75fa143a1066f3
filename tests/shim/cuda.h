// What kernels in CUDA C++ find on the shim.
#pragma once
#include "fiber.h"
#include <cmath>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads, workgroups)
#define SHARED_ARRAY SHIM_SHARED
#define blockIdx shim::now.group

struct ThreadIndex {
    unsigned x;
};
#define threadIdx (ThreadIndex{shim::now.current})

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline void __syncthreads() { shim::barrier(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return shim::exchange(value, shim::now.current ^ (unsigned)mask, "shuffle xor");
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return shim::exchange(value, (unsigned)lane, "shuffle");
}
template <class To, class From>
To shim_bits(From from) {
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned bits) { return shim_bits<float>(bits); }
inline unsigned __float_as_uint(float x) { return shim_bits<unsigned>(x); }
inline long long __double_as_longlong(double x) { return shim_bits<long long>(x); }

template <class T>
T shim::argument(void** args, size_t at) {
    return (T)args[at];
}
