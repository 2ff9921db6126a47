/*
 * What kernels/amx.c takes of simd/amx.h, computed in C, for processors without a tile unit. It
 * stands in for AMX where results are tested; it says nothing about its speed.
 *
 * As the instructions do, TILE_DOT takes denormal numbers for 0 and rounds each product and sum to
 * nearest; in which order it adds them is its own. Using a register that has no shape ends the
 * program, as it does there.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { STAND_IN_ROWS = 16, STAND_IN_BYTES = 64 };

static _Thread_local mfa_tile_state stand_in_shapes;
static _Thread_local unsigned char stand_in_tiles[8][STAND_IN_ROWS][STAND_IN_BYTES];

static bool may_use_tiles(void) { return true; }

static void stand_in_check(unsigned tile)
{
    if (stand_in_shapes.palette != 1 || stand_in_shapes.rows[tile] != STAND_IN_ROWS ||
        stand_in_shapes.row_bytes[tile] != STAND_IN_BYTES)
        abort();
}

static void stand_in_load(unsigned tile, const void *at, size_t step)
{
    stand_in_check(tile);
    for (size_t row = 0; row < STAND_IN_ROWS; row++)
        memcpy(stand_in_tiles[tile][row], (const char *)at + row * step, STAND_IN_BYTES);
}

static void stand_in_store(unsigned tile, void *at, size_t step)
{
    stand_in_check(tile);
    for (size_t row = 0; row < STAND_IN_ROWS; row++)
        memcpy((char *)at + row * step, stand_in_tiles[tile][row], STAND_IN_BYTES);
}

/* Of a pair: the first or the second number. */
static float stand_in_number(const unsigned char *pair, int which)
{
    uint32_t bits;
    memcpy(&bits, pair, sizeof bits);
    bits = which ? bits & 0xffff0000u : bits << 16;
    if ((bits & 0x7f800000u) == 0)
        bits &= 0x80000000u;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static void stand_in_dot(unsigned sums, unsigned a, unsigned b)
{
    enum { COLUMNS = STAND_IN_BYTES / 4, PAIRS = STAND_IN_BYTES / 4 };
    stand_in_check(sums);
    stand_in_check(a);
    stand_in_check(b);
    for (int row = 0; row < STAND_IN_ROWS; row++) {
        float sum[COLUMNS];
        memcpy(sum, stand_in_tiles[sums][row], sizeof sum);
        for (int pair = 0; pair < PAIRS; pair++)
            for (int which = 0; which < 2; which++) {
                const float left = stand_in_number(stand_in_tiles[a][row] + 4 * pair, which);
                for (int column = 0; column < COLUMNS; column++)
                    sum[column] +=
                        left * stand_in_number(stand_in_tiles[b][pair] + 4 * column, which);
            }
        memcpy(stand_in_tiles[sums][row], sum, sizeof sum);
    }
}

#define TILE_SHAPES_STORE(to) (*(to) = stand_in_shapes)
#define TILE_SHAPES_LOAD(from) (stand_in_shapes = *(from))
#define TILE_ZERO(to) (stand_in_check(to), memset(stand_in_tiles[to], 0, sizeof *stand_in_tiles))
#define TILE_LOAD(to, at, step) stand_in_load(to, at, step)
#define TILE_STORE(from, at, step) stand_in_store(from, at, step)
#define TILE_DOT(sums, a, b) stand_in_dot(sums, a, b)
