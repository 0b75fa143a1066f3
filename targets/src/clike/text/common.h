// Numbers, and sums over threads. Everything below is the same text for every dialect.
#define INF as_float(0x7f800000u)
#define NOT_A_NUMBER as_float(0x7fc00000u)
#define LANES 32

FN int lesser(int a, int b) { return b < a ? b : a; }
FN float lesser_of(float a, float b) { return b < a ? b : a; }
FN float greater_of(float a, float b) { return b > a ? b : a; }

// The operations of the CPU's exp in their order: see bessemer-kernels, math.
FN float exponential(float x) {
    const float magic = 12582912.0f;
    const float t = x * 1.44269502f + magic, n = t - magic;
    const float r = (x - n * 0.693359375f) - n * -2.12194442e-4f;
    float p = 1.98756912e-4f;
    p = p * r + 1.39819994e-3f;
    p = p * r + 8.33345205e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666657e-1f;
    p = p * r + 0.5f;
    float y = (p * (r * r) + r) + 1.0f;
    const int i = (int)(as_uint(t) - as_uint(magic)), h = i >> 1;
    y = (y * as_float((uint)(h + 127) << 23)) * as_float((uint)(i - h + 127) << 23);
    y = x < -87.3365402f ? 0.0f : y;
    return x > 88.7228317f ? INF : y;
}
FN float sine(float x) { return quarter_sine(x, 0); }
FN float cosine(float x) { return quarter_sine(x, 1); }
FN float silu(float x) { return x / (1.0f + exponential(-x)); }
FN float gelu_tanh(float x) { return x / (1.0f + exponential(x * (-1.59576905f + -7.13548064e-2f * (x * x)))); }
FN float gelu(float x) {
    const float size = as_float(as_uint(x) & 0x7fffffffu);
    const float t = 1.0f / (1.0f + 0.231641889f * size);
    float p = 0.53070271f;
    p = p * t + -0.726575971f;
    p = p * t + 0.71070689f;
    p = p * t + -0.142248362f;
    p = p * t + 0.127414793f;
    return (x < 0.0f ? 0.0f : x) - size * (p * t * exponential(size * size * -0.5f));
}
FN float hyperbolic_tangent(float x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }

FN float bf16(ushort bits) { return as_float((uint)bits << 16); }
FN ushort to_bf16(float x) {
    const uint bits = as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (ushort)(bits >> 16 | 0x40u);
    return (ushort)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// The numbers of small floats, through binary16, which has all their exponents once the biases agree.
FN float e4m3(uint code) {
    const float x = f16((ushort)((code & 0x80u) << 8 | (code & 0x7fu) << 7)) * 256.0f;
    return (code & 0x7fu) == 0x7fu ? NOT_A_NUMBER : x;
}
FN float e5m2(uint code) { return f16((ushort)(code << 8)); }
FN float e2m1(uint code) { return f16((ushort)((code & 8u) << 12 | (code & 7u) << 9)) * 16384.0f; }
TABLE float iq4_numbers[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
FN float iq4(uint code) { return iq4_numbers[code & 15u]; }

// Scale i behind `at`.
FN float scale_f32(const GLOBAL uchar* at, int i) { return ((const GLOBAL float*)at)[i]; }
FN float scale_f16(const GLOBAL uchar* at, int i) { return f16(((const GLOBAL ushort*)at)[i]); }
FN float scale_bf16(const GLOBAL uchar* at, int i) { return bf16(((const GLOBAL ushort*)at)[i]); }
FN float scale_u8(const GLOBAL uchar* at, int i) { return (float)at[i]; }
FN float scale_s8(const GLOBAL uchar* at, int i) { return (float)(signed char)at[i]; }
FN float scale_e4m3(const GLOBAL uchar* at, int i) { return e4m3(at[i]); }
FN float scale_e8m0(const GLOBAL uchar* at, int i) {
    const uint code = at[i];
    return as_float(code == 0u ? 1u << 22 : code == 255u ? 0x7fc00000u : code << 23);
}

#ifdef KV_F32
typedef float kv;
FN float load_kv(kv x) { return x; }
FN void load_kv_pair(const GLOBAL kv* at, LOCAL float (&v)[2]) { v[0] = at[0], v[1] = at[1]; }
FN kv store_kv(float x) { return x; }
#else
typedef ushort kv;
FN float load_kv(kv bits) { return bf16(bits); }
// Two neighbours in one load; `at` is a multiple of 4.
FN void load_kv_pair(const GLOBAL kv* at, LOCAL float (&v)[2]) {
    const uint both = *(const GLOBAL uint*)at;
    v[0] = as_float(both << 16), v[1] = as_float(both & 0xffff0000u);
}
FN kv store_kv(float x) { return to_bf16(x); }
#endif

// An integer out of memory that becomes an index: one out of bounds is told to the host and counts as 0.
FN int checked(int value, idx limit, GLOBAL int* fault) {
    if (value >= 0 && value < limit) return value;
    fault[0] = 1;
    return 0;
}

FN float warp_sum(float x) {
    UNROLL for (int mask = 16; mask > 0; mask /= 2) x = x + lane_xor(x, mask);
    return x;
}
FN float warp_max(float x) {
    UNROLL for (int mask = 16; mask > 0; mask /= 2) x = greater_of(x, lane_xor(x, mask));
    return x;
}

// Sums and maxima over a workgroup, the same bits in every thread. `partial` holds a number a warp.
FN float group_sum(float x, SHARED float* partial, int tid, int warps) {
    x = warp_sum(x);
    if (tid % LANES == 0) partial[tid / LANES] = x;
    barrier();
    float sum = partial[0];
    for (int w = 1; w < warps; ++w) sum = sum + partial[w];
    barrier();
    return sum;
}
FN float group_max(float x, SHARED float* partial, int tid, int warps) {
    x = warp_max(x);
    if (tid % LANES == 0) partial[tid / LANES] = x;
    barrier();
    float max = partial[0];
    for (int w = 1; w < warps; ++w) max = greater_of(max, partial[w]);
    barrier();
    return max;
}
