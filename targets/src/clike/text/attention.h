// Attention of one row and head over the blocks of a cache, with the softmax taken as tokens come: the scores seen so far are held as
// their maximum, the sum of their exponentials, and the sum of values weighted by these.
//
// A block has 32 tokens, one a lane: a lane computes the whole score of its token (keys lie so that lanes read neighbours), then lanes
// take elements of the head for the values. Warps take every fourth block and are merged at the end.
#define BLOCK_TOKENS 32

// What a row sees, and where it lies. `first_elem` is that of the layer in a block.
struct Sight {
    int first, last;       // positions, both included
    idx block_elems, keys, values;
    int latent;            // whether values are the first elements of keys
};

// BIAS is the number of heads where something is added to scores by the distance of two positions, or 0: `bias[token * BIAS]` then is what a
// token's score gets.
template <int DIM, int WARPS, int BIAS>
struct Softmax {
    enum { PARTS = (DIM + LANES - 1) / LANES };

    // Folds the blocks from `from` to `to` (excluded) that this warp takes. `scratch` is [WARPS][DIM + 2] and holds each warp's state after it.
    MEMBER void run(
        const GLOBAL float* q, const GLOBAL int* table, const GLOBAL kv* cache, Sight see, int from, int to,
        int blocks, float scale, float softcap, const GLOBAL float* bias, int tid, SHARED float* scratch, GLOBAL int* fault
    ) {
        const int lane = tid % LANES, warp = tid / LANES;
        float max = -INF, sum = 0.0f, mixed[PARTS];
        UNROLL for (int i = 0; i < PARTS; ++i) mixed[i] = 0.0f;
        for (int block = from + warp; block < to; block += WARPS) {
            const GLOBAL kv* home = cache + checked(table[block], blocks, fault) * see.block_elems;
            const int token = block * BLOCK_TOKENS + lane;
            const bool seen = token >= see.first && token <= see.last;
            float score = -INF;
            if (seen) {
                const GLOBAL kv* key = home + see.keys + lane / 16 * 16 * DIM + lane % 16 * 2;
                float dot = 0.0f, pair[2];
                for (int d = 0; d < DIM; d += 2) {
                    load_kv_pair(key + d * 16, pair);
                    dot = fused(q[d + 1], pair[1], fused(q[d], pair[0], dot));
                }
                score = dot * scale;
                if (softcap > 0.0f) score = softcap * hyperbolic_tangent(score / softcap);
                if (BIAS > 0) score = score + bias[token * BIAS];
            }
            const float grown = greater_of(max, warp_max(score));
            const float weight = seen ? exponential(score - grown) : 0.0f;
            const float fade = exponential(max - grown);
            max = grown;
            sum = sum * fade + warp_sum(weight);
            UNROLL for (int i = 0; i < PARTS; ++i) mixed[i] = mixed[i] * fade;
            // Places of tokens that the row does not see may hold anything.
            const int begin = see.first - block * BLOCK_TOKENS, end = see.last - block * BLOCK_TOKENS;
            for (int t = 0; t < BLOCK_TOKENS; t += 2) {
                const float first = lane_at(weight, t), second = lane_at(weight, t + 1);
                if (t + 1 < begin || t > end) continue;
                UNROLL for (int i = 0; i < PARTS; ++i) {
                    const int d = i * LANES + lane;
                    if (d >= DIM) continue;
                    float pair[2];
                    if (see.latent) {
                        const GLOBAL kv* key = home + see.values + t / 16 * 16 * DIM + d / 2 * 32 + t % 16 * 2 + d % 2;
                        pair[0] = load_kv(key[0]), pair[1] = load_kv(key[2]);
                    } else {
                        load_kv_pair(home + see.values + t * DIM + d * 2, pair);
                    }
                    if (t >= begin) mixed[i] = fused(first, pair[0], mixed[i]);
                    if (t + 1 <= end) mixed[i] = fused(second, pair[1], mixed[i]);
                }
            }
        }
        SHARED float* own = scratch + warp * (DIM + 2);
        if (lane == 0) own[0] = max, own[1] = sum;
        UNROLL for (int i = 0; i < PARTS; ++i) {
            if (i * LANES + lane < DIM) own[2 + i * LANES + lane] = mixed[i];
        }
        barrier();
    }
};

// The merger of `count` states of DIM + 2 numbers that begin at `states`: the maximum of all and of `sink`, the sum, and element d of the
// weighted values. P is a pointer to them.
template <int DIM, class P>
FN float merged_max(P states, int count, float sink) {
    float max = sink;
    for (int i = 0; i < count; ++i) max = greater_of(max, states[i * (DIM + 2)]);
    return max;
}
template <int DIM, class P>
FN float merged(P states, int count, float max, int element) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum = fused(exponential(states[i * (DIM + 2)] - max), states[i * (DIM + 2) + 1 + element], sum);
    return sum;
}
