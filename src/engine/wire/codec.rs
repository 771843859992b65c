// SPDX-License-Identifier: GPL-2.0
//! Reading and writing the fields of a fixed layout, one after the other, and the macro that makes packet types.

use core::fmt;

use super::text::Text;
use super::BufferTooSmall;

/// Why a payload is not the packet it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It ends before its last field.
    TooShort {
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        found: usize,
    },
    /// Bytes are left over.
    TooLong {
        /// Most bytes this packet can have.
        max: usize,
        /// Bytes there.
        found: usize,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooShort { needed, found } => write!(f, "{found} bytes, at least {needed} expected"),
            Self::TooLong { max, found } => write!(f, "{found} bytes, at most {max} expected"),
        }
    }
}

impl DecodeError {
    /// Checks that a payload has `min..=max` bytes.
    pub(super) fn check(found: usize, min: usize, max: usize) -> Result<(), Self> {
        if found < min {
            Err(Self::TooShort { needed: min, found })
        } else if found > max {
            Err(Self::TooLong { max, found })
        } else {
            Ok(())
        }
    }
}

/// Takes fields from the front of a payload.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
    taken: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload, taken: 0 }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let found = self.taken.saturating_add(self.rest.len());
        let needed = self.taken.saturating_add(N);
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::TooShort { needed, found })?;
        self.rest = rest;
        self.taken = needed;
        Ok(*head)
    }

    pub(super) fn get<T: WireField>(&mut self) -> Result<T, DecodeError> {
        T::take(self)
    }
}

/// Puts fields into a buffer.
#[derive(Debug)]
pub struct Room<'a> {
    rest: &'a mut [u8],
    written: usize,
}

impl<'a> Room<'a> {
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        Self { rest: buffer, written: 0 }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), BufferTooSmall> {
        let rest = core::mem::take(&mut self.rest);
        let (head, rest) = rest.split_at_mut_checked(bytes.len()).ok_or(BufferTooSmall)?;
        head.copy_from_slice(bytes);
        self.rest = rest;
        self.written = self.written.saturating_add(bytes.len());
        Ok(())
    }

    pub(super) fn put<T: WireField>(&mut self, field: &T) -> Result<(), BufferTooSmall> {
        field.put(self)
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> usize {
        self.written
    }
}

/// A type that can be a field of a packet.
pub trait WireField: Sized {
    /// Reads it from the front.
    ///
    /// # Errors
    /// [`DecodeError::TooShort`].
    fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError>;

    /// Writes it.
    ///
    /// # Errors
    /// [`BufferTooSmall`].
    fn put(&self, room: &mut Room<'_>) -> Result<(), BufferTooSmall>;
}

macro_rules! big_endian {
    ($($int:ty)+) => {$(
        impl WireField for $int {
            fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
                fields.array().map(Self::from_be_bytes)
            }

            fn put(&self, room: &mut Room<'_>) -> Result<(), BufferTooSmall> {
                room.bytes(&self.to_be_bytes())
            }
        }
    )+};
}

big_endian!(u8 u16 u32 u64 i32);

impl WireField for [u64; 4] {
    fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok([fields.get()?, fields.get()?, fields.get()?, fields.get()?])
    }

    fn put(&self, room: &mut Room<'_>) -> Result<(), BufferTooSmall> {
        self.iter().try_for_each(|number| room.put(number))
    }
}

/// All `N` bytes; a text without NUL loses its last byte.
impl<const N: usize> WireField for Text<N> {
    fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        fields.array::<N>().map(|bytes| Self::truncated(&bytes))
    }

    fn put(&self, room: &mut Room<'_>) -> Result<(), BufferTooSmall> {
        room.bytes(self.as_padded())
    }
}

/// Makes packet types of a fixed layout: fields in their order, then `pad` bytes that are written as zero and not
/// read. `exact` payloads end there; after `prefix` ones a digest or data may follow.
macro_rules! layouts {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident, $len:literal bytes $kind:ident, pad $pad:literal {
            $($(#[doc = $help:literal])+ $field:ident : $ty:ty,)+
        }
    )+) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $help])+ pub $field: $ty,)+
        }

        impl $name {
            /// Bytes of the fixed part.
            pub const LEN: usize = $len;

            /// Reads the fixed part from the start of the payload.
            ///
            /// # Errors
            /// [`DecodeError`] when the payload has not the length of this packet.
            pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
                DecodeError::check(payload.len(), Self::LEN, layouts!(@max $kind, $len))?;
                WireField::take(&mut Fields::new(payload))
            }

            /// Writes the fixed part to the start of `buffer` and returns its length.
            ///
            /// # Errors
            /// [`BufferTooSmall`] when there is no room for it.
            pub fn encode(&self, buffer: &mut [u8]) -> Result<usize, BufferTooSmall> {
                let mut room = Room::new(buffer);
                room.put(self)?;
                Ok(room.written())
            }
        }

        impl WireField for $name {
            fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
                let packet = Self { $($field: fields.get()?,)+ };
                fields.array::<$pad>()?;
                Ok(packet)
            }

            fn put(&self, room: &mut Room<'_>) -> Result<(), BufferTooSmall> {
                $(room.put(&self.$field)?;)+
                room.bytes(&[0; $pad])
            }
        }
    )+};
    (@max exact, $len:literal) => { $len };
    (@max prefix, $len:literal) => { usize::MAX };
}
pub(super) use layouts;

/// Makes a set of flag bits that keeps bits it does not know.
macro_rules! flags {
    ($(#[doc = $doc:literal])* $name:ident: $bits:ty {
        $($(#[doc = $help:literal])+ $flag:ident = $bit:literal,)+
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub $bits);

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[doc = $help])+ pub const $flag: Self = Self($bit);)+

            /// Whether all of these flags are set.
            #[must_use]
            pub const fn contains(self, flags: Self) -> bool {
                self.0 & flags.0 == flags.0
            }

            /// With these flags.
            #[must_use]
            pub const fn with(self, flags: Self) -> Self {
                Self(self.0 | flags.0)
            }

            /// With these flags if the condition holds.
            #[must_use]
            pub const fn with_if(self, condition: bool, flags: Self) -> Self {
                if condition {
                    self.with(flags)
                } else {
                    self
                }
            }

            /// Without these flags.
            #[must_use]
            pub const fn without(self, flags: Self) -> Self {
                Self(self.0 & !flags.0)
            }
        }

        impl core::ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, flags: Self) -> Self {
                self.with(flags)
            }
        }

        impl WireField for $name {
            fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
                fields.get().map(Self)
            }

            fn put(&self, room: &mut Room<'_>) -> Result<(), BufferTooSmall> {
                room.put(&self.0)
            }
        }
    };
}
pub(super) use flags;
