// Which row of the 79-row contour table a head rotation asks for.
#pragma once

#include <cmath>

#include "common.h"

namespace ringnet {

constexpr index_t contour_table_rows = 79;  // 0 frontal, 1..39: +1..+39 degrees, 40..78: -1..-39

// R (9 values, row-major): the product of the rotations from the root to the neck. Its third row is the direction to the
// camera in the head's frame, up to the sign that tells a y-up frame (face towards +z) from RingNet's y-down frame (face
// towards -z): yaw = atan(-R20 / R22) is right in both, and in-plane roll leaves it as it is. Positive: turned to the
// subject's left (+x). Not a number gives row 0, never an index outside the table.
template <class T>
RN_HOST_DEVICE index_t contour_row(const T R[9]) {
    const T r20 = R[6], r22 = R[8];
    const T degrees = std::atan2(r22 < T(0) ? r20 : -r20, std::fabs(r22)) * T(57.295779513082320877);
    if (!(degrees == degrees)) return 0;
    const T clamped = degrees > T(39) ? T(39) : degrees < T(-39) ? T(-39) : degrees;
    const index_t row = static_cast<index_t>(std::rint(clamped));
    return row < 0 ? 39 - row : row;
}

}  // namespace ringnet
