/* BigVGAN's anti-aliased SnakeBeta, forward and backward, one pass a channel row.
 *
 * up: u[2m] = 2 sum_r f[2r+1] x[m+2-r], u[2m+1] = 2 sum_r f[2r] x[m+3-r], r = 0..5, x replicated at its edges
 * act: v = u + sin^2(a u) / b
 * down: y[m] = sum_k f[k] v[2m+k-5], k = 0..11, v replicated at its edges
 * Compile: cc -O3 -march=native -ffast-math -fopenmp-simd -shared -fPIC
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HALF_PI 1.57079632679f
#define P 4 /* margin on both sides of the even and odd halves */

/* xp[P + i] = x[clamp(i)]; e[P + m] = u[2m], o[P + m] = u[2m+1] */
static void up(const float *x, float *xp, float *e, float *o, const float *f, int T) {
    memcpy(xp + P, x, T * sizeof(float));
    for (int i = 0; i < P; i++) { xp[i] = x[0]; xp[P + T + i] = x[T - 1]; }
    const float *c = xp + P;
    for (int m = 0; m < T; m++) {
        float even = 0, odd = 0;
        for (int r = 0; r < 6; r++) {
            even += f[2 * r + 1] * c[m + 2 - r];
            odd += f[2 * r] * c[m + 3 - r];
        }
        e[P + m] = 2 * even;
        o[P + m] = 2 * odd;
    }
}

void aa_forward(const float *x, float *y, const float *a, const float *b, const float *f, int rows, int C, int T) {
    int W = T + 2 * P;
    float *xp = malloc(3 * W * sizeof(float)), *e = xp + W, *o = e + W;
    for (int n = 0; n < rows; n++) {
        float al = a[n % C], inv = 1.0f / b[n % C];
        up(x + (size_t)n * T, xp, e, o, f, T);
#pragma omp simd
        for (int m = P; m < P + T; m++) {
            e[m] += 0.5f * inv * (1.0f - cosf(2 * al * e[m]));
            o[m] += 0.5f * inv * (1.0f - cosf(2 * al * o[m]));
        }
        for (int i = 0; i < P; i++) { e[i] = o[i] = e[P]; e[P + T + i] = o[P + T + i] = o[P + T - 1]; }
        float *out = y + (size_t)n * T, *ce = e + P, *co = o + P;
        for (int m = 0; m < T; m++) {
            float s = 0;
            for (int r = 0; r < 6; r++) s += f[2 * r + 1] * ce[m - 2 + r] + f[2 * r] * co[m - 3 + r];
            out[m] = s;
        }
    }
    free(xp);
}

/* da, db: gradients of log alpha and log beta, (C,), added to */
void aa_backward(const float *x, const float *dy, float *dx, const float *a, const float *b, float *da, float *db,
                 const float *f, int rows, int C, int T) {
    int W = T + 2 * P;
    float *xp = malloc(6 * W * sizeof(float)), *e = xp + W, *o = e + W, *ge = o + W, *go = ge + W, *gp = go + W;
    for (int n = 0; n < rows; n++) {
        float al = a[n % C], inv = 1.0f / b[n % C];
        up(x + (size_t)n * T, xp, e, o, f, T);
        /* transpose of down: ge[j] = sum_r f[2r+1] dy[j+2-r], go[j] = sum_r f[2r] dy[j+3-r], j = -P .. T+P-1 */
        memset(gp, 0, W * sizeof(float));
        memcpy(gp + P, dy + (size_t)n * T, T * sizeof(float));
        const float *cg = gp + P;
        for (int j = 0; j < T; j++) {
            float even = 0, odd = 0;
            for (int r = 0; r < 6; r++) {
                even += f[2 * r + 1] * cg[j + 2 - r];
                odd += f[2 * r] * cg[j + 3 - r];
            }
            ge[P + j] = even;
            go[P + j] = odd;
        }
        for (int i = 0; i < 2 * P; i++) { /* the replicated edges */
            int j = i < P ? i - P : T + i - P;
            float even = 0, odd = 0;
            for (int r = 0; r < 6; r++) {
                int p = j + 2 - r, q = j + 3 - r;
                if (p >= 0 && p < T) even += f[2 * r + 1] * cg[p];
                if (q >= 0 && q < T) odd += f[2 * r] * cg[q];
            }
            ge[P + j] = even;
            go[P + j] = odd;
        }
        for (int i = 0; i < P; i++) {
            ge[P] += ge[i] + go[i];
            go[P + T - 1] += ge[P + T + i] + go[P + T + i];
        }
        float sa = 0, sb = 0;
#pragma omp simd reduction(+ : sa, sb)
        for (int m = P; m < P + T; m++) {
            /* cos as a shifted sin: of one argument both would become sincosf, which no compiler vectorizes */
            float z1 = 2 * al * e[m], z2 = 2 * al * o[m];
            float s1 = sinf(z1), c1 = sinf(z1 + HALF_PI), s2 = sinf(z2), c2 = sinf(z2 + HALF_PI);
            sa += al * inv * (ge[m] * e[m] * s1 + go[m] * o[m] * s2);
            sb -= 0.5f * inv * (ge[m] * (1 - c1) + go[m] * (1 - c2));
            ge[m] *= 1 + al * inv * s1;
            go[m] *= 1 + al * inv * s2;
        }
        da[n % C] += sa;
        db[n % C] += sb;
        for (int i = 0; i < P; i++) ge[i] = go[i] = ge[P + T + i] = go[P + T + i] = 0;
        /* transpose of up: dxp[i] = 2 sum_r f[2r+1] ge[i-2+r] + f[2r] go[i-3+r], i = -3 .. T+2, edges folded */
        float *out = dx + (size_t)n * T, *ce = ge + P, *co = go + P;
        for (int i = 0; i < T; i++) {
            float s = 0;
            for (int r = 0; r < 6; r++) s += f[2 * r + 1] * ce[i - 2 + r] + f[2 * r] * co[i - 3 + r];
            out[i] = 2 * s;
        }
        for (int i = 1; i <= 3; i++) {
            float left = 0, right = 0;
            for (int r = 0; r < 6; r++) {
                int p = -i - 2 + r, q = -i - 3 + r, u = T - 1 + i - 2 + r, v = T - 1 + i - 3 + r;
                if (p >= 0) left += f[2 * r + 1] * ce[p];
                if (q >= 0) left += f[2 * r] * co[q];
                if (u < T) right += f[2 * r + 1] * ce[u];
                if (v < T) right += f[2 * r] * co[v];
            }
            out[0] += 2 * left;
            out[T - 1] += 2 * right;
        }
    }
    free(xp);
}
