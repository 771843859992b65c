// SPDX-License-Identifier: GPL-2.0
//! The module's own objects.
