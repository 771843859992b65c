// SPDX-License-Identifier: GPL-2.0
//! Programs of user space started by the module.

use super::raw;
use kernel::prelude::*;

/// Bound: arguments of a program, with its name.
const ARGUMENTS_MAX: usize = 4;
/// Bound: variables in its environment.
const VARIABLES_MAX: usize = 8;

/// Runs `program` with `arguments` (without the program's name) and `environment`, and waits for its end. Sleeps;
/// must not be called with a lock held that a command started by the program may need.
///
/// Returns the wait status (the exit code is in bits 8 to 15).
///
/// # Errors
/// Why it could not be started; `E2BIG` for more arguments or variables than the bounds above allow.
pub(crate) fn run(program: &CStr, arguments: &[&CStr], environment: &[&CStr]) -> Result<i32> {
    let mut argv = [core::ptr::null_mut(); ARGUMENTS_MAX + 1];
    let mut envp = [core::ptr::null_mut(); VARIABLES_MAX + 1];
    fill(&mut argv, Iterator::chain(core::iter::once(program), arguments.iter().copied()))?;
    fill(&mut envp, environment.iter().copied())?;
    // SAFETY: the path and both arrays with their strings outlive the call, which waits for the program's end; both
    // arrays end with a null pointer.
    let status = unsafe {
        raw::call_usermodehelper(
            program.as_char_ptr(),
            argv.as_mut_ptr(),
            envp.as_mut_ptr(),
            raw::UMH_WAIT_PROC as kernel::ffi::c_int,
        )
    };
    kernel::error::to_result(status)?;
    Ok(status)
}

/// Stores pointers to the strings; the last place stays null.
fn fill<'a, const N: usize>(
    places: &mut [*mut kernel::ffi::c_char; N],
    strings: impl Iterator<Item = &'a CStr>,
) -> Result {
    for (index, string) in strings.enumerate() {
        if index + 1 >= N {
            return Err(E2BIG);
        }
        *places.get_mut(index).ok_or(E2BIG)? = string.as_char_ptr().cast_mut();
    }
    Ok(())
}
