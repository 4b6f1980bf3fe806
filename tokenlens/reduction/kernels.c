/* Reductions of activations on the CPU, reading each tensor once.

   Compiled and called by compiled.py; kernels.py has the same reductions in torch operations and defines every number.
   Nothing is checked here: the caller guarantees shapes, strides and types. Tensors are float32 with adjacent channels,
   strides count elements. One thread reduces each image, in a fixed order, so results depend neither on the number of
   threads nor on the other images of the batch. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Long float32 sums are computed in parts of this many tokens; their rounding errors would grow with the length. */
enum { PART = 64 };

static void add_part(int64_t channels, float *restrict total, float *restrict part)
{
    for (int64_t d = 0; d < channels; d++) {
        total[d] += part[d];
        part[d] = 0;
    }
}

/* Reduce tokens (images, tokens, channels). Outputs that are NULL are skipped:
   norms        (images, tokens)                     Euclidean norms
   rows         (images, prefixes + sums, channels)  the prefix tokens, then the sum over patches of x/|x| in row
                                                     unit_row and of x in row sum_row (-1: skipped)
   magnitudes   (images, channels)                   the sum of |x| over patches
   products     (images, tokens)                     inner products with other, which has the strides of x */
void tokenlens_tokens(int threads, int64_t images, int64_t tokens, int64_t channels, const float *x,
                      int64_t image_stride, int64_t token_stride, int64_t first_patch, int64_t patches,
                      const int64_t *prefix, int64_t prefixes, float *norms, float *rows, int64_t rows_per_image,
                      int64_t unit_row, int64_t sum_row, float *magnitudes, const float *other, float *products)
{
    const size_t bytes = (size_t)channels * sizeof(float);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < images; b++) {
        const float *image = x + b * image_stride;
        float *output = rows ? rows + b * rows_per_image * channels : NULL;
        float *units = output && unit_row >= 0 ? output + unit_row * channels : NULL;
        float *total = output && sum_row >= 0 ? output + sum_row * channels : NULL;
        float *absolute = magnitudes ? magnitudes + b * channels : NULL;
        float parts[3 * channels];
        float *restrict unit = units ? parts : NULL;
        float *restrict sum = total ? parts + channels : NULL;
        float *restrict magnitude = absolute ? parts + 2 * channels : NULL;
        memset(parts, 0, 3 * bytes);
        if (output)
            for (int64_t r = 0; r < prefixes; r++)
                memcpy(output + r * channels, image + prefix[r] * token_stride, bytes);
        if (unit) memset(units, 0, bytes);
        if (sum) memset(total, 0, bytes);
        if (magnitude) memset(absolute, 0, bytes);
        for (int64_t t = 0; t < tokens; t++) {
            const float *restrict token = image + t * token_stride;
            float square = 0, product = 0;
            if (products) {
                const float *restrict other_token = other + b * image_stride + t * token_stride;
                for (int64_t d = 0; d < channels; d++) {
                    square += token[d] * token[d];
                    product += token[d] * other_token[d];
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

/* Reduce the patches x (images, patches, channels) of a norm's input. With c = x - mean, or c = x where means is NULL:
   means    (images, patches)            the mean over channels
   lengths  (images, stages, patches)    |c| and, where weight is given, |weight * c|
   sums     (images, stages, channels)   the sum over patches of c divided by each of these lengths */
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

/* Reduce attention, given q and k (images, heads, tokens, channels), each with the strides of images, heads and tokens.
   Outputs that are NULL are skipped:
   row          (images, heads, tokens)    attention of the token at position cls to every token
   columns      (images, heads, prefixes)  mean over patches of their attention to each prefix token; needs lse
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
        /* Heads in the inner loop, as q and k usually lie in memory. */
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t h = 0; h < heads; h++) {
                const float *restrict q_head = q + b * q_strides[0] + h * q_strides[1];
                const float *restrict k_head = k + b * k_strides[0] + h * k_strides[1];
                /* Processors do not predict the stride between tokens, which skips the other two of q, k and v. */
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
            float *output = row + (b * heads + h) * tokens, top = -INFINITY;
            double total = 0;
            for (int64_t t = 0; t < tokens; t++) top = output[t] > top ? output[t] : top;
            for (int64_t t = 0; t < tokens; t++) total += output[t] = expf(output[t] - top);
            for (int64_t t = 0; t < tokens; t++) output[t] = (float)(output[t] / total);
        }
    }
}
