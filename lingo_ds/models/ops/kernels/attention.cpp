// Attention over packs on a CPU, exact and in fp32, recomputed in the backward pass (arXiv 2205.14135).
//
// One head, one sequence and one block of queries at a time. Scores that the mask hides are not computed but for
// the ragged edge of a tile, and count as 0.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "threads.h"
#include "tiles.h"

namespace {

constexpr int64_t BLOCK = 8 * ROWS;  // queries whose scores are held at once

struct Range {
    int64_t first, end;
};

}  // namespace

extern "C" {

struct Tensor {  // (tokens, heads, size), the last dimension dense
    float *data;
    int64_t by_token, by_head;
};

struct Sequence {  // tokens [begin, begin + own) of the pack, behind the first `before` ones, which all share
    int64_t begin, own, before;
};

struct Pack {
    Tensor query, key, value, out;
    float *log_sums;  // (heads, tokens)
    const Sequence *sequences;
    int64_t count, tokens, heads, key_heads, size;
    int64_t window;  // a token sees itself and window - 1 before; 0: all
    int64_t causal;
    int64_t threads;
    float scale;
};

struct Gradients {
    Tensor out, query, key, value;
};
}

namespace {

Rows head_of(const Tensor &tensor, int64_t head) { return {tensor.data + head * tensor.by_head, tensor.by_token}; }

// The keys of one sequence: the shared ones, then its own. Query i is key before + i.
struct Keys {
    const Pack &pack;
    Sequence at;
    int64_t count;

    Keys(const Pack &pack, const Sequence &at) : pack(pack), at(at), count(at.before + at.own) {}
    int64_t token(int64_t key) const { return key < at.before ? key : at.begin + key - at.before; }

    Range seen_by(int64_t query) const {
        if (!pack.causal) return {0, count};
        const int64_t end = at.before + query + 1;
        return {pack.window ? std::max<int64_t>(0, end - pack.window) : 0, end};
    }
    Range seen_by(int64_t query, int64_t queries) const {  // in whole vectors
        return {seen_by(query).first / LANES * LANES, whole(seen_by(query + queries - 1).end)};
    }
    void gather(Rows from, Rows to) const {  // (keys, size)
        for (int64_t key = 0; key < count; key++) {
            std::memcpy(to[key], from[token(key)], pack.size * sizeof(float));
            std::fill(to[key] + pack.size, to[key] + to.stride, 0.0f);
        }
    }
    void transpose(Rows from, Rows to, float scale) const {  // (size, keys)
        for (int64_t key = 0; key < count; key += LANES)
            by_vector(0, pack.size, [&](int64_t d, int64_t left) {
                Vector rows[LANES]{};
                for (int64_t lane = 0; lane < std::min(LANES, count - key); lane++)
                    rows[lane] = load(from[token(key + lane)] + d, left) * scale;
                ::transpose(rows);
                for (int64_t n = 0; n < std::min(LANES, left); n++) vector_at(to[d + n] + key) = rows[n];
            });
    }
    // Own keys' gradients are complete; those of the first `shared` tokens, which others see, too, are added up.
    void give(Rows from, Rows to, int64_t shared) const {
        for (int64_t key = 0; key < count; key++) {
            const bool add = token(key) < shared;
            by_vector(0, pack.size, [&](int64_t d, int64_t left) {
                const Vector x = load(from[key] + d, left);
                float *place = to[token(key)] + d;
                store(place, left, add ? x + load(place, left) : x);
            });
        }
    }
};

// A block of queries of one head and the scores of all keys that any of them sees.
struct Block {
    const Keys &keys;
    int64_t first, count;
    Range seen;

    Block(const Keys &keys, int64_t first)
        : keys(keys), first(first), count(std::min(BLOCK, keys.at.own - first)), seen(keys.seen_by(first, count)) {}
    int64_t token(int64_t row) const { return keys.at.begin + first + row; }
    Range seen_by(int64_t row) const { return keys.seen_by(first + row); }

    // to (queries, keys) = of (queries, size) times transposed (size, keys), each row as far as it sees
    void scores(Rows of, Rows transposed, Rows to) const {
        for (int64_t row = 0; row < count; row += ROWS) {
            const int64_t rows = std::min(ROWS, count - row), end = keys.seen_by(first + row, rows).end;
            product({of[token(row)], of.stride, 1}, transposed.from(0, seen.first), to.from(row, seen.first), rows,
                    keys.pack.size, end - seen.first, false);
        }
    }
    // to (queries, size) = weights (queries, keys) times values (keys, size), likewise
    void weigh(Rows weights, Rows values, Rows to) const {
        for (int64_t row = 0; row < count; row += ROWS) {
            const int64_t rows = std::min(ROWS, count - row), end = seen_by(row + rows - 1).end;
            product({weights[row] + seen.first, weights.stride, 1}, values.from(seen.first, 0), to.from(row, 0), rows,
                    end - seen.first, to.stride, false);
        }
    }
    // to (keys, size) += weights^T (keys, queries) times values (queries, size)
    void spread(Rows weights, Rows values, Rows to) const {
        const int64_t end = std::min(seen.end, keys.count);
        product({weights.data + seen.first, 1, weights.stride}, values, to.from(seen.first, 0), end - seen.first, count,
                to.stride, true);
    }
    void hide(float *weights, int64_t row, float with) const {  // what this query does not see
        const Range visible = seen_by(row);
        std::fill(weights + seen.first, weights + visible.first, with);
        std::fill(weights + visible.end, weights + seen.end, with);
    }
};

int64_t longest(const Pack &pack) {  // most keys of a sequence
    int64_t most = 0;
    for (int64_t n = 0; n < pack.count; n++)
        most = std::max(most, pack.sequences[n].before + pack.sequences[n].own);
    return most;
}

int64_t shared_by(const Pack &pack) {  // tokens at the beginning that several sequences see
    int64_t most = 0;
    for (int64_t n = 0; n < pack.count; n++) most = std::max(most, pack.sequences[n].before);
    return most;
}

// Scores into weights that are not yet divided by their sum; returns the highest score and the sum.
std::pair<float, float> softmax(float *scores, Range seen) {
    const int64_t first = seen.first / LANES * LANES, end = whole(seen.end);
    Vector most = vector_at(scores + first), sum{};
    for (int64_t key = first; key < end; key += LANES) {
        const Vector x = vector_at(scores + key);
        most = x > most ? x : most;
    }
    const float top = highest(most);
    for (int64_t key = first; key < end; key += LANES) {
        Vector &weight = vector_at(scores + key);
        weight = exponential(weight - top);
        sum += weight;
    }
    return {top, total(sum)};
}

struct Forward {  // what one thread needs
    const Pack &pack;
    const int64_t most = longest(pack);
    Buffer transposed{pack.size, most}, values{most, pack.size}, weights{BLOCK, most}, sums{BLOCK, pack.size};

    void operator()(int64_t key_head) {
        for (int64_t n = 0; n < pack.count; n++) {
            const Keys keys(pack, pack.sequences[n]);
            keys.transpose(head_of(pack.key, key_head), transposed, pack.scale);
            keys.gather(head_of(pack.value, key_head), values);
            const int64_t group = pack.heads / pack.key_heads;
            for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
                for (int64_t first = 0; first < keys.at.own; first += BLOCK) attend(Block(keys, first), head);
        }
    }
    void attend(const Block &block, int64_t head) {
        block.scores(head_of(pack.query, head), transposed, weights);
        float inverse[BLOCK];
        for (int64_t row = 0; row < block.count; row++) {
            block.hide(weights[row], row, -INFINITY);
            const auto [highest, sum] = softmax(weights[row], block.seen_by(row));
            block.hide(weights[row], row, 0);
            inverse[row] = 1 / sum;
            pack.log_sums[head * pack.tokens + block.token(row)] = highest + std::log(sum);
        }
        block.weigh(weights, values, sums);
        for (int64_t row = 0; row < block.count; row++) {
            float *out = head_of(pack.out, head)[block.token(row)];
            for (int64_t d = 0; d < pack.size; d++) out[d] = sums[row][d] * inverse[row];
        }
    }
};

struct Backward {
    const Pack &pack;
    const Gradients &gradients;
    const int64_t most = longest(pack), shared = shared_by(pack);
    Buffer transposed{pack.size, most}, values{pack.size, most}, natural{most, pack.size};
    Buffer of_keys{most, pack.size}, of_values{most, pack.size}, of_queries{BLOCK, pack.size};
    Buffer weights{BLOCK, most}, of_scores{BLOCK, most}, queries{BLOCK, pack.size}, of_out{BLOCK, pack.size};

    void operator()(int64_t key_head) {
        const Rows of_key = head_of(gradients.key, key_head), of_value = head_of(gradients.value, key_head);
        for (int64_t token = 0; token < shared; token++) {
            std::fill(of_key[token], of_key[token] + pack.size, 0.0f);
            std::fill(of_value[token], of_value[token] + pack.size, 0.0f);
        }
        for (int64_t n = 0; n < pack.count; n++) {
            const Keys keys(pack, pack.sequences[n]);
            const Rows key = head_of(pack.key, key_head);
            keys.transpose(key, transposed, pack.scale);
            keys.transpose(head_of(pack.value, key_head), values, 1);
            keys.gather(key, natural);
            std::fill(of_keys.data, of_keys[keys.count], 0.0f);
            std::fill(of_values.data, of_values[keys.count], 0.0f);
            const int64_t group = pack.heads / pack.key_heads;
            for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
                for (int64_t first = 0; first < keys.at.own; first += BLOCK) go_back(Block(keys, first), head);
            keys.give(of_keys, of_key, shared);
            keys.give(of_values, of_value, shared);
        }
    }
    void go_back(const Block &block, int64_t head) {
        const Rows query = head_of(pack.query, head), out = head_of(gradients.out, head);
        block.scores(query, transposed, weights);
        block.scores(out, values, of_scores);
        for (int64_t row = 0; row < block.count; row++) {
            to_scores(block, row, head);
            copy(query[block.token(row)], queries[row]);
            copy(out[block.token(row)], of_out[row]);
        }
        block.weigh(of_scores, natural, of_queries);
        block.spread(weights, of_out, of_values);
        block.spread(of_scores, queries, of_keys);
        for (int64_t row = 0; row < block.count; row++)
            std::memcpy(head_of(gradients.query, head)[block.token(row)], of_queries[row], pack.size * sizeof(float));
    }
    // One row: scores to weights, and the weights' gradients to those of the scores.
    void to_scores(const Block &block, int64_t row, int64_t head) {
        const int64_t token = block.token(row);
        const float *out = head_of(pack.out, head)[token], *of_out = head_of(gradients.out, head)[token];
        Vector along{};
        by_vector(0, pack.size, [&](int64_t d, int64_t left) { along += load(out + d, left) * load(of_out + d, left); });
        const float mean = total(along);  // of the weights' gradients
        const float log_sum = pack.log_sums[head * pack.tokens + token];
        const Range seen = block.seen_by(row);
        for (int64_t key = seen.first / LANES * LANES; key < seen.end; key += LANES) {
            Vector &weight = vector_at(weights[row] + key), &gradient = vector_at(of_scores[row] + key);
            weight = exponential(weight - log_sum);
            gradient = weight * (gradient - mean) * pack.scale;
        }
        block.hide(weights[row], row, 0);
        block.hide(of_scores[row], row, 0);
    }
    void copy(const float *from, float *to) {
        std::memcpy(to, from, pack.size * sizeof(float));
        std::fill(to + pack.size, to + whole(pack.size), 0.0f);
    }
};

// Key heads one by one, each by one thread: their gradients need no lock and do not depend on who came first.
template <class Work, class... Of>
void by_head(const Pack &pack, const Of &...of) {
    std::atomic<int64_t> next{0};
    on_threads(std::min(pack.threads, pack.key_heads), [&](int64_t) {
        Work mine{pack, of...};
        for (int64_t head; (head = next++) < pack.key_heads;) mine(head);
    });
}

}  // namespace

extern "C" void attend(const Pack *pack) { by_head<Forward>(*pack); }

extern "C" void attend_backward(const Pack *pack, const Gradients *gradients) { by_head<Backward>(*pack, *gradients); }
