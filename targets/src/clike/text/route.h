// The choice of experts by one warp: see Route in the plan. `keys` is workgroup memory with a number an expert.

// The best of `count` keys that come after (key, index) in the order of choice: larger keys first, of equal ones the smaller index.
// The same in every lane. An index of -1 begins.
struct Best {
    float key;
    int index;
};
FN bool better(float key, int index, float than, int than_index) { return key > than || (key == than && index < than_index); }
FN Best next_best(const SHARED float* keys, int count, Best after, int lane) {
    Best best = {-INF, count};
    for (int i = lane; i < count; i += LANES) {
        const bool open = after.index < 0 || better(after.key, after.index, keys[i], i);
        if (open && better(keys[i], i, best.key, best.index)) best.key = keys[i], best.index = i;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        const float key = lane_xor(best.key, mask);
        const int index = lane_xor(best.index, mask);
        if (better(key, index, best.key, best.index)) best.key = key, best.index = index;
    }
    return best;
}

// Chooses `top_k` of EXPERTS experts. Keys that are no numbers become the least that can be chosen.
template <int EXPERTS, int GROUPS>
FN void choose(
    SHARED float* keys, SHARED float* group_keys, int best_groups, int keys_a_group, int top_k, int lane, GLOBAL int* chosen
) {
    const float least = -3.40282347e38f;
    for (int i = lane; i < EXPERTS; i += LANES) keys[i] = keys[i] > -INF ? keys[i] : least;
    barrier();
    if (best_groups < GROUPS) {
        const int size = EXPERTS / GROUPS;
        for (int g = 0; g < GROUPS; ++g) {
            float sum = 0.0f;
            Best best = {0.0f, -1};
            for (int i = 0; i < keys_a_group; ++i) {
                best = next_best(keys + g * size, size, best, lane);
                sum = sum + best.key;
            }
            if (lane == 0) group_keys[g] = sum > -INF ? sum : least;
        }
        barrier();
        // The last group that takes part; whatever comes after it does not.
        Best last = {0.0f, -1};
        for (int i = 0; i < best_groups; ++i) last = next_best(group_keys, GROUPS, last, lane);
        for (int i = lane; i < EXPERTS; i += LANES) {
            if (better(last.key, last.index, group_keys[i / size], i / size)) keys[i] = -INF;
        }
        barrier();
    }
    Best best = {0.0f, -1};
    for (int slot = 0; slot < top_k; ++slot) {
        best = next_best(keys, EXPERTS, best, lane);
        if (lane == 0) chosen[slot] = best.index;
    }
}
