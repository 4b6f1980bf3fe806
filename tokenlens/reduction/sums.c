/* The sums over tokens that analyze takes inside a forward pass on the CPU, each tensor read once.

   Compiled and called by compiled_sums.py; sums.py has the same in torch operations and says what each number is.
   Nothing is checked here: shapes, strides and types are the caller's.
   Tensors are float32 with adjacent channels; strides are counted in elements. Every image is summed by one thread
   in one order, so numbers depend on neither the number of threads nor the other images of the batch. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A long sum of float32 is taken in parts of so many tokens, or its rounding errors would grow with their number. */
enum { PART = 64 };

static void add_part(int64_t channels, float *restrict total, float *restrict part)
{
    for (int64_t d = 0; d < channels; d++) {
        total[d] += part[d];
        part[d] = 0;
    }
}

/* Of tokens (images, tokens, channels). What is NULL is not wanted:
   norms        (images, tokens)                 Euclidean norms
   rows         (images, prefixes + sums, channels)  the prefix tokens, then at unit_row the sum over patches of
                x/|x| and at sum_row that of x (-1: not wanted)
   magnitudes   (images, channels)               the sum of |x| over patches
   products     (images, tokens)                 inner products with other, which is laid out as x is */
void tokenlens_tokens(int threads, int64_t images, int64_t tokens, int64_t channels, const float *x,
                      int64_t image_stride, int64_t token_stride, int64_t first_patch, int64_t patches,
                      const int64_t *prefix, int64_t prefixes, float *norms, float *rows, int64_t rows_an_image,
                      int64_t unit_row, int64_t sum_row, float *magnitudes, const float *other, float *products)
{
    const size_t bytes = (size_t)channels * sizeof(float);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < images; b++) {
        const float *image = x + b * image_stride;
        float *own = rows ? rows + b * rows_an_image * channels : NULL;
        float *units = own && unit_row >= 0 ? own + unit_row * channels : NULL;
        float *total = own && sum_row >= 0 ? own + sum_row * channels : NULL;
        float *absolute = magnitudes ? magnitudes + b * channels : NULL;
        float parts[3 * channels];
        float *restrict unit = units ? parts : NULL;
        float *restrict sum = total ? parts + channels : NULL;
        float *restrict magnitude = absolute ? parts + 2 * channels : NULL;
        memset(parts, 0, 3 * bytes);
        if (own)
            for (int64_t r = 0; r < prefixes; r++)
                memcpy(own + r * channels, image + prefix[r] * token_stride, bytes);
        if (unit) memset(units, 0, bytes);
        if (sum) memset(total, 0, bytes);
        if (magnitude) memset(absolute, 0, bytes);
        for (int64_t t = 0; t < tokens; t++) {
            const float *restrict token = image + t * token_stride;
            float square = 0, product = 0;
            if (products) {
                const float *restrict beside = other + b * image_stride + t * token_stride;
                for (int64_t d = 0; d < channels; d++) {
                    square += token[d] * token[d];
                    product += token[d] * beside[d];
                }
                products[b * tokens + t] = product;
            } else {
                for (int64_t d = 0; d < channels; d++) square += token[d] * token[d];
            }
            const float norm = sqrtf(square), inverse = 1.0f / norm;
            if (norms) norms[b * tokens + t] = norm;
            if (t < first_patch || t >= first_patch + patches) continue;
            if (unit && sum && magnitude) {
                for (int64_t d = 0; d < channels; d++) {
                    unit[d] += inverse * token[d];
                    sum[d] += token[d];
                    magnitude[d] += fabsf(token[d]);
                }
            } else if (unit && sum) {
                for (int64_t d = 0; d < channels; d++) {
                    unit[d] += inverse * token[d];
                    sum[d] += token[d];
                }
            } else {
                if (unit)
                    for (int64_t d = 0; d < channels; d++) unit[d] += inverse * token[d];
                if (sum)
                    for (int64_t d = 0; d < channels; d++) sum[d] += token[d];
                if (magnitude)
                    for (int64_t d = 0; d < channels; d++) magnitude[d] += fabsf(token[d]);
            }
            if ((t - first_patch) % PART == PART - 1 || t == first_patch + patches - 1) {
                if (unit) add_part(channels, units, unit);
                if (sum) add_part(channels, total, sum);
                if (magnitude) add_part(channels, absolute, magnitude);
            }
        }
    }
}

/* Of the patches (images, patches, channels) that a norm takes in: centred on means (images, patches), or not where
   that is NULL; lengths (images, stages, patches) of c and, where weight is given, of weight·c; and sums
   (images, stages, channels) of c over each of these lengths. */
void tokenlens_stages(int threads, int64_t images, int64_t patches, int64_t channels, const float *x,
                      int64_t image_stride, int64_t token_stride, const float *restrict weight, float *means,
                      float *lengths, float *sums)
{
    const int64_t stages = weight ? 2 : 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < images; b++) {
        float *totals = sums + b * stages * channels, parts[2 * channels];
        float *restrict centred = parts, *restrict weighted = parts + channels;
        memset(totals, 0, (size_t)(stages * channels) * sizeof(float));
        memset(parts, 0, (size_t)(2 * channels) * sizeof(float));
        for (int64_t p = 0; p < patches; p++) {
            const float *restrict token = x + b * image_stride + p * token_stride;
            float mean = 0, square = 0, weighted_square = 0;
            if (means) {
                for (int64_t d = 0; d < channels; d++) mean += token[d];
                means[b * patches + p] = mean /= (float)channels;
            }
            float *length = lengths + b * stages * patches + p;
            if (weight) {
                for (int64_t d = 0; d < channels; d++) {
                    const float c = token[d] - mean, w = weight[d] * c;
                    square += c * c;
                    weighted_square += w * w;
                }
                length[0] = sqrtf(square);
                length[patches] = sqrtf(weighted_square);
                const float inverse = 1.0f / length[0], weighted_inverse = 1.0f / length[patches];
                for (int64_t d = 0; d < channels; d++) {
                    const float c = token[d] - mean;
                    centred[d] += inverse * c;
                    weighted[d] += weighted_inverse * c;
                }
            } else {
                for (int64_t d = 0; d < channels; d++) {
                    const float c = token[d] - mean;
                    square += c * c;
                }
                length[0] = sqrtf(square);
                const float inverse = 1.0f / length[0];
                for (int64_t d = 0; d < channels; d++) centred[d] += inverse * (token[d] - mean);
            }
            if (p % PART == PART - 1 || p == patches - 1) add_part(stages * channels, totals, parts);
        }
    }
}

/* Of attention, from q and k (images, heads, tokens, channels); of each tensor the strides of images, heads and tokens.
   What is NULL is not wanted:
   row          (images, heads, tokens)    the attention of the token at position cls to all
   columns      (images, heads, prefixes)  the mean over patches of their attention to each prefix token, from lse
                                           (images, heads, tokens), the log of each row's softmax denominator */
void tokenlens_attention(int threads, int64_t images, int64_t heads, int64_t tokens, int64_t channels, const float *q,
                         const int64_t *q_strides, const float *k, const int64_t *k_strides, float scale,
                         const float *lse, const int64_t *lse_strides, int64_t first_patch, int64_t patches,
                         const int64_t *prefix, int64_t prefixes, int64_t cls, float *row, float *columns)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < images; b++) {
        double totals[heads * prefixes + 1]; /* at least one */
        for (int64_t i = 0; i < heads * prefixes; i++) totals[i] = 0;
        /* Tokens outside, heads inside: that is how q and k usually lie in memory. */
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t h = 0; h < heads; h++) {
                const float *restrict q_head = q + b * q_strides[0] + h * q_strides[1];
                const float *restrict k_head = k + b * k_strides[0] + h * k_strides[1];
                /* The processor does not foresee the step from token to token, which skips the other two of q, k, v. */
                for (int64_t d = 0; d < channels; d += 16) {
                    __builtin_prefetch(q_head + (t + 4) * q_strides[2] + d);
                    __builtin_prefetch(k_head + (t + 4) * k_strides[2] + d);
                }
                if (row) {
                    const float *query = q_head + cls * q_strides[2], *key = k_head + t * k_strides[2];
                    float dot = 0;
                    for (int64_t d = 0; d < channels; d++) dot += query[d] * key[d];
                    row[(b * heads + h) * tokens + t] = scale * dot;
                }
                if (!columns || t < first_patch || t >= first_patch + patches) continue;
                const float log_total = lse[b * lse_strides[0] + h * lse_strides[1] + t * lse_strides[2]];
                for (int64_t r = 0; r < prefixes; r++) {
                    const float *query = q_head + t * q_strides[2], *key = k_head + prefix[r] * k_strides[2];
                    float dot = 0;
                    for (int64_t d = 0; d < channels; d++) dot += query[d] * key[d];
                    totals[h * prefixes + r] += expf(scale * dot - log_total);
                }
            }
        if (columns)
            for (int64_t i = 0; i < heads * prefixes; i++)
                columns[b * heads * prefixes + i] = (float)(totals[i] / (double)patches);
        for (int64_t h = 0; row && h < heads; h++) {
            float *own = row + (b * heads + h) * tokens, top = -INFINITY;
            double total = 0;
            for (int64_t t = 0; t < tokens; t++) top = own[t] > top ? own[t] : top;
            for (int64_t t = 0; t < tokens; t++) total += own[t] = expf(own[t] - top);
            for (int64_t t = 0; t < tokens; t++) own[t] = (float)(own[t] / total);
        }
    }
}
