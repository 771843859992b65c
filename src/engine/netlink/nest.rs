// SPDX-License-Identifier: GPL-2.0
//! How a nest of the attribute table becomes a Rust type: the `nests!` macro and what all such types can do.

use super::attr::{AttrReader, AttrWriter, Direction, Malformed, MANDATORY, NESTED};
use super::value::{FieldSpec, Value};
use crate::wire::BufferTooSmall;

/// A set of field numbers of one nest (all are below 64).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Present(u64);

impl Present {
    /// No field.
    pub const NONE: Self = Self(0);
    /// Every field.
    pub const ALL: Self = Self(u64::MAX);

    /// Adds a field; numbers from 64 on do not exist and are ignored.
    pub fn insert(&mut self, number: u16) {
        self.0 |= Self::bit(number);
    }

    /// With this field.
    #[must_use]
    pub fn with(mut self, number: u16) -> Self {
        self.insert(number);
        self
    }

    /// Whether the field is in the set.
    #[must_use]
    pub fn contains(self, number: u16) -> bool {
        self.0 & Self::bit(number) != 0
    }

    /// Whether the set has no field.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bit(number: u16) -> u64 {
        1u64.checked_shl(number.into()).unwrap_or(0)
    }
}

/// What a received nest is for: decides which rules of the marks apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseMode {
    /// The request makes the object: required fields must be there.
    Create,
    /// The request changes the object: invariant fields must not be there.
    Change,
    /// A message of the module, read by a tool: what is there is taken.
    Receive,
}

/// What is wrong with a received nest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrErrorKind {
    /// A required field is absent.
    Missing,
    /// A field that cannot be changed any more is present.
    Invariant,
    /// A value is of the wrong size, too long or out of its enumeration, or the nest is no list of attributes.
    Invalid,
    /// A field nobody here knows is marked as mandatory to understand.
    UnknownMandatory,
}

/// Why a nest was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttrError {
    /// The reason.
    pub kind: AttrErrorKind,
    /// The field's name; empty when the field is unknown or the whole nest is malformed.
    pub field: &'static str,
    /// The field's number; 0 when the whole nest is malformed.
    pub number: u16,
}

impl AttrError {
    /// The text to be put into the reply.
    // spec: netlink 6 (general)
    #[must_use]
    pub fn info_text(&self) -> &'static str {
        match self.kind {
            AttrErrorKind::Missing => "required attribute missing",
            AttrErrorKind::Invariant => "can not change invariant setting",
            AttrErrorKind::Invalid | AttrErrorKind::UnknownMandatory => "invalid attribute value",
        }
    }

    fn new(kind: AttrErrorKind, spec: &FieldSpec) -> Self {
        Self {
            kind,
            field: spec.name,
            number: spec.number,
        }
    }
}

impl From<Malformed> for AttrError {
    fn from(_: Malformed) -> Self {
        Self {
            kind: AttrErrorKind::Invalid,
            field: "",
            number: 0,
        }
    }
}

/// Whether secrets are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redact {
    /// Everything is written: the receiver may see secrets.
    Nothing,
    /// Sensitive texts are written empty.
    Sensitive,
}

/// A nest of the attribute table with typed fields.
pub trait Nest: Copy + Default {
    /// Top-level attribute number.
    const NUMBER: u16;
    /// Name of the top-level attribute.
    const NAME: &'static str;
    /// Whether the module sets the nested bit when it sends this nest.
    const NESTED_IN_REPLY: bool;
    /// Every field, by ascending number.
    const FIELDS: &'static [FieldSpec];

    /// The value of a field; `None` when it is absent or the number unknown.
    fn get(&self, number: u16) -> Option<Value<'_>>;

    /// Sets a field. False, and nothing changed, when the number is unknown or the value is not of its kind.
    #[must_use]
    fn set(&mut self, number: u16, value: Value<'_>) -> bool;

    /// The row of a field.
    #[must_use]
    fn field(number: u16) -> Option<&'static FieldSpec> {
        Self::FIELDS.iter().find(|spec| spec.number == number)
    }

    /// The row of the field an option sets.
    #[must_use]
    fn field_of_option(name: &str) -> Option<&'static FieldSpec> {
        Self::FIELDS.iter().find(|spec| spec.is_option(name))
    }

    /// Takes over the fields of a received nest (the payload of its attribute) and says which were there.
    ///
    /// Numbers nobody knows are skipped unless they are marked as mandatory; of a field that comes twice the last
    /// counts. Limits are not checked, see [`Nest::clamp`].
    ///
    /// # Errors
    /// [`AttrError`]; the value is unchanged then.
    // spec: netlink 1.2, 1.3, 6
    fn parse(&mut self, nest_bytes: &[u8], mode: ParseMode) -> Result<Present, AttrError> {
        let mut next = *self;
        let mut present = Present::NONE;
        for attr in AttrReader::new(nest_bytes) {
            let attr = attr?;
            let Some(spec) = Self::field(attr.number) else {
                // Number 0 is padding.
                if attr.mandatory && attr.number != 0 {
                    let kind = AttrErrorKind::UnknownMandatory;
                    return Err(AttrError {
                        kind,
                        field: "",
                        number: attr.number,
                    });
                }
                continue;
            };
            if mode == ParseMode::Change && spec.marks.invariant {
                return Err(AttrError::new(AttrErrorKind::Invariant, spec));
            }
            let taken = spec.kind.read(&attr).is_some_and(|value| next.set(attr.number, value));
            if !taken {
                return Err(AttrError::new(AttrErrorKind::Invalid, spec));
            }
            present.insert(attr.number);
        }
        if mode == ParseMode::Create {
            let missing = |spec: &&FieldSpec| spec.marks.required && !present.contains(spec.number);
            if let Some(spec) = Self::FIELDS.iter().find(missing) {
                return Err(AttrError::new(AttrErrorKind::Missing, spec));
            }
        }
        *self = next;
        Ok(present)
    }

    /// Writes the nest, header included, with every field that is not absent.
    ///
    /// # Errors
    /// [`BufferTooSmall`]; nothing is written then.
    fn emit(&self, w: &mut AttrWriter<'_>, redact: Redact) -> Result<(), BufferTooSmall> {
        self.emit_only(w, Present::ALL, redact)
    }

    /// As [`Nest::emit`], but only the fields of a set: what a tool sends is what it was told, not the defaults.
    ///
    /// # Errors
    /// [`BufferTooSmall`]; nothing is written then.
    fn emit_only(&self, w: &mut AttrWriter<'_>, fields: Present, redact: Redact) -> Result<(), BufferTooSmall> {
        let before = w.len();
        let nested = if Self::NESTED_IN_REPLY || w.direction() == Direction::Request {
            NESTED
        } else {
            0
        };
        let nest = w.begin_nest(Self::NUMBER | nested)?;
        for spec in Self::FIELDS.iter().filter(|spec| fields.contains(spec.number)) {
            emit_field(w, spec, self.get(spec.number), redact).inspect_err(|_| w.truncate(before))?;
        }
        w.end_nest(nest)
    }

    /// Sets every field that may be changed later to its default.
    // spec: netlink 1.1 (set defaults)
    fn reset_changeable(&mut self) {
        let defaults = Self::default();
        for spec in Self::FIELDS.iter().filter(|spec| !spec.marks.invariant) {
            if let Some(value) = defaults.get(spec.number) {
                // Cannot fail: the value is of this field.
                let _ = self.set(spec.number, value);
            }
        }
    }

    /// Brings every number into its limits.
    fn clamp(&mut self) {
        let unclamped = *self;
        for spec in Self::FIELDS {
            if let (Some(range), Some(value)) = (spec.range, unclamped.get(spec.number)) {
                // Cannot fail: the value is of this field.
                let _ = self.set(spec.number, value.clamped(range));
            }
        }
    }
}

fn emit_field(
    w: &mut AttrWriter<'_>,
    spec: &FieldSpec,
    value: Option<Value<'_>>,
    redact: Redact,
) -> Result<(), BufferTooSmall> {
    let Some(value) = value else { return Ok(()) };
    let mandatory = if spec.marks.mandatory && w.direction() == Direction::Request {
        MANDATORY
    } else {
        0
    };
    let shown = match value {
        Value::Text(_) if spec.marks.sensitive && redact == Redact::Sensitive => Value::Text(&[]),
        value => value,
    };
    w.put_value(spec.number | mandatory, &spec.kind, &shown)
}

/// Makes the types of the table. A row is
/// `/// help` · number · constant with that number · field: type = default, marks, then what `FieldSpec` is told more.
macro_rules! nests {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident = $number:literal $attr_name:literal, nested_in_reply($nested:literal) {
            $(
                #[doc = $help:literal]
                $field_number:literal $field_const:ident $field:ident : $ty:ty = $default:expr, $marks:expr
                $(, $with:ident($($arg:expr),+))* ;
            )+
        }
    )+) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            $(#[doc = $help] pub $field: $ty,)+
        }

        impl $name {
            $(
                #[doc = concat!("Field number of `", stringify!($field), "`.")]
                pub const $field_const: u16 = $field_number;
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl Nest for $name {
            const NUMBER: u16 = $number;
            const NAME: &'static str = $attr_name;
            const NESTED_IN_REPLY: bool = $nested;
            const FIELDS: &'static [FieldSpec] = &[$(
                FieldSpec::new(
                    $field_number,
                    stringify!($field),
                    $help.trim_ascii(),
                    <$ty as FieldValue>::KIND,
                    $marks,
                    || {
                        const DEFAULT: $ty = $default;
                        FieldValue::value(&DEFAULT)
                    },
                )$(.$with($($arg),+))*,
            )+];

            fn get(&self, number: u16) -> Option<Value<'_>> {
                match number {
                    $($field_number => self.$field.value(),)+
                    _ => None,
                }
            }

            fn set(&mut self, number: u16, value: Value<'_>) -> bool {
                match number {
                    $($field_number => match FieldValue::from_value(value) {
                        Some(value) => {
                            self.$field = value;
                            true
                        }
                        None => false,
                    },)+
                    _ => false,
                }
            }
        }

        impl fmt::Debug for $name {
            /// Secrets are left out.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut out = f.debug_struct(stringify!($name));
                $(if !$marks.sensitive {
                    out.field(stringify!($field), &self.$field);
                })+
                out.finish_non_exhaustive()
            }
        }
    )+};
}
pub(super) use nests;
