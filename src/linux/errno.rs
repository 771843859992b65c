// SPDX-License-Identifier: GPL-2.0
//! Error numbers that the `kernel` crate of some supported kernel does not name.

use super::raw;
use kernel::prelude::*;

/// Makes one function for each error number.
macro_rules! errors {
    ($($(#[$doc:meta])* $function:ident = $number:ident;)*) => {
        $(
            $(#[$doc])*
            #[allow(dead_code)]
            pub(crate) fn $function() -> Error {
                // CAST: error numbers are small.
                Error::from_errno(-(raw::$number as c_int))
            }
        )*
    };
}

errors! {
    /// No medium found, or the wrong one: the volume is not Primary.
    emediumtype = EMEDIUMTYPE;
    /// Read-only.
    erofs = EROFS;
    /// No data available.
    enodata = ENODATA;
    /// Protocol error.
    eproto = EPROTO;
    /// Socket is not connected.
    enotconn = ENOTCONN;
    /// Connection reset by the peer.
    econnreset = ECONNRESET;
    /// Address already in use.
    eaddrinuse = EADDRINUSE;
    /// Address not available.
    eaddrnotavail = EADDRNOTAVAIL;
    /// Operation not supported.
    eopnotsupp = EOPNOTSUPP;
    /// Interrupted.
    eintr = EINTR;
    /// Address family not supported.
    eafnosupport = EAFNOSUPPORT;
    /// Connection refused.
    econnrefused = ECONNREFUSED;
    /// The connection is being made.
    einprogress = EINPROGRESS;
    /// Network is unreachable.
    enetunreach = ENETUNREACH;
    /// Host is down.
    ehostdown = EHOSTDOWN;
    /// No route to the host.
    ehostunreach = EHOSTUNREACH;
    /// Interrupted by a signal, to be started anew.
    erestartsys = ERESTARTSYS;
    /// Message too long.
    emsgsize = EMSGSIZE;
    /// Timed out.
    etimedout = ETIMEDOUT;
}
