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
        Self { kind, field: spec.name, number: spec.number }
    }
}

impl From<Malformed> for AttrError {
    fn from(_: Malformed) -> Self {
        Self { kind: AttrErrorKind::Invalid, field: "", number: 0 }
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
                    return Err(AttrError { kind, field: "", number: attr.number });
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
        let nested = if Self::NESTED_IN_REPLY || w.direction() == Direction::Request { NESTED } else { 0 };
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
    let mandatory = if spec.marks.mandatory && w.direction() == Direction::Request { MANDATORY } else { 0 };
    let shown = match value {
        Value::Text(_) if spec.marks.sensitive && redact == Redact::Sensitive => Value::Text(&[]),
        value => value,
    };
    w.put_value(spec.number | mandatory, &spec.kind, &shown)
}

/// Makes the types of the table. A row is: help as doc comment; number, name of the constant with that number, field:
/// type = default, marks; then what else [`FieldSpec`] is told.
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

#[cfg(test)]
mod tests {
    use super::super::table::*;
    use super::super::value::{Bytes, FieldKind};
    use super::super::words::*;
    use super::super::Text;
    use super::*;

    fn emitted<N: Nest>(nest: &N, direction: Direction, redact: Redact) -> Vec<u8> {
        let mut buffer = [0; 4096];
        let mut w = AttrWriter::new(&mut buffer, direction);
        nest.emit(&mut w, redact).unwrap();
        let bytes = w.as_bytes().to_vec();
        for room in 0..bytes.len() {
            let mut small = vec![0; room];
            let mut w = AttrWriter::new(&mut small, direction);
            assert_eq!(nest.emit(&mut w, redact), Err(BufferTooSmall), "{room}");
            assert!(w.is_empty());
        }
        bytes
    }

    fn payload(bytes: &[u8]) -> &[u8] {
        AttrReader::new(bytes).next().unwrap().unwrap().payload
    }

    /// A value that differs from the default and every neighbour.
    fn sample(spec: &FieldSpec) -> Value<'static> {
        match spec.kind {
            FieldKind::Bool => Value::Bool(spec.default() != Some(Value::Bool(true))),
            FieldKind::U32 => Value::U32(0x0101_0000 + u32::from(spec.number)),
            FieldKind::I32 => Value::I32(-3 - i32::from(spec.number)),
            FieldKind::U64 => Value::U64(0x0101_0000_0000_0000 + u64::from(spec.number)),
            FieldKind::Text { .. } => Value::Text(b"a text"),
            FieldKind::Binary { .. } => Value::Binary(b"\x02\0\x1e\x6c"),
            FieldKind::Words(words) => Value::U32(words.last().unwrap().number),
        }
    }

    fn check_round_trip<N: Nest + PartialEq + std::fmt::Debug>() {
        let mut nest = N::default();
        for spec in N::FIELDS {
            assert!(nest.set(spec.number, sample(spec)), "{}", spec.name);
            assert_eq!(nest.get(spec.number), Some(sample(spec)));
        }
        for direction in [Direction::Request, Direction::Reply] {
            let bytes = emitted(&nest, direction, Redact::Nothing);
            for mode in [ParseMode::Create, ParseMode::Receive] {
                let mut parsed = N::default();
                let present = parsed.parse(payload(&bytes), mode).unwrap();
                assert_eq!(parsed, nest);
                assert!(N::FIELDS.iter().all(|spec| present.contains(spec.number)));
            }
        }
        let mut reset = nest;
        reset.reset_changeable();
        for spec in N::FIELDS {
            let kept = spec.marks.invariant || spec.default().is_none();
            let expected = if kept { Some(sample(spec)) } else { spec.default() };
            assert_eq!(reset.get(spec.number), expected, "{}", spec.name);
        }
        assert_eq!(nest.get(0), None);
        assert!(!nest.set(63, Value::Bool(true)));
    }

    #[test]
    fn every_nest_is_read_as_it_is_written() {
        check_round_trip::<CfgReply>();
        check_round_trip::<CfgContext>();
        check_round_trip::<DiskConf>();
        check_round_trip::<ResourceOpts>();
        check_round_trip::<NetConf>();
        check_round_trip::<SetRoleParms>();
        check_round_trip::<ResizeParms>();
        check_round_trip::<StateInfo>();
        check_round_trip::<StartOvParms>();
        check_round_trip::<NewCUuidParms>();
        check_round_trip::<TimeoutParms>();
        check_round_trip::<DisconnectParms>();
        check_round_trip::<DetachParms>();
        check_round_trip::<ResourceInfo>();
        check_round_trip::<DeviceInfo>();
        check_round_trip::<ConnectionInfo>();
        check_round_trip::<PeerDeviceInfo>();
        check_round_trip::<ResourceStatistics>();
        check_round_trip::<DeviceStatistics>();
        check_round_trip::<ConnectionStatistics>();
        check_round_trip::<PeerDeviceStatistics>();
        check_round_trip::<NotificationHeader>();
        check_round_trip::<Helper>();
    }

    #[test]
    fn requests_carry_the_bits_tools_set_and_replies_those_of_the_module() {
        let kinds = |bytes: &[u8]| -> (u16, u16) {
            let kind = |at: usize| u16::from_ne_bytes([bytes[at + 2], bytes[at + 3]]);
            (kind(0), kind(4))
        };
        let context = CfgContext { ctx_volume: Some(0), ..CfgContext::default() };
        assert_eq!(kinds(&emitted(&context, Direction::Request, Redact::Nothing)), (0x8002, 0x4001));
        assert_eq!(kinds(&emitted(&context, Direction::Reply, Redact::Nothing)), (0x0002, 0x0001));
        let disk = DiskConf::default();
        assert_eq!(kinds(&emitted(&disk, Direction::Request, Redact::Nothing)), (0x8003, 0x0001));
        assert_eq!(kinds(&emitted(&disk, Direction::Reply, Redact::Nothing)), (0x8003, 0x0001));
    }

    #[test]
    fn a_tool_sends_only_what_it_was_told() {
        let disk = DiskConf { resync_rate: 10240, ..DiskConf::default() };
        let mut buffer = [0; 64];
        let mut w = AttrWriter::new(&mut buffer, Direction::Request);
        disk.emit_only(&mut w, Present::NONE.with(DiskConf::RESYNC_RATE), Redact::Nothing).unwrap();
        let mut changed = DiskConf::default();
        let present = changed.parse(payload(w.as_bytes()), ParseMode::Change).unwrap();
        assert_eq!(present, Present::NONE.with(DiskConf::RESYNC_RATE));
        assert_eq!(changed, disk);
    }

    #[test]
    fn secrets_are_blanked_and_never_printed() {
        let net = NetConf { shared_secret: Text::try_from("hush").unwrap(), ..NetConf::default() };
        let shared_secret = |redact| {
            let mut parsed = NetConf::default();
            parsed.parse(payload(&emitted(&net, Direction::Reply, redact)), ParseMode::Receive).unwrap();
            parsed.shared_secret
        };
        assert_eq!(shared_secret(Redact::Nothing), "hush");
        assert_eq!(shared_secret(Redact::Sensitive), "");
        assert!(!format!("{net:?}").contains("hush"));
    }

    fn list(fill: impl FnOnce(&mut AttrWriter<'_>)) -> Vec<u8> {
        let mut buffer = [0; 512];
        let mut w = AttrWriter::new(&mut buffer, Direction::Request);
        fill(&mut w);
        w.as_bytes().to_vec()
    }

    fn refused<N: Nest + PartialEq + std::fmt::Debug>(bytes: &[u8], mode: ParseMode) -> (AttrErrorKind, &'static str) {
        let mut nest = N::default();
        let error = nest.parse(bytes, mode).unwrap_err();
        assert_eq!(nest, N::default(), "unchanged");
        (error.kind, error.field)
    }

    #[test]
    fn required_and_invariant_fields() {
        let rate = list(|w| w.put_u32(8, 1).unwrap());
        assert_eq!(refused::<DiskConf>(&rate, ParseMode::Create), (AttrErrorKind::Missing, "backing_dev"));
        assert_eq!(refused::<DiskConf>(&[], ParseMode::Create), (AttrErrorKind::Missing, "backing_dev"));
        assert!(DiskConf::default().parse(&rate, ParseMode::Change).is_ok());
        let size = list(|w| w.put_u64(4, 1).unwrap());
        assert_eq!(refused::<DiskConf>(&size, ParseMode::Change), (AttrErrorKind::Invariant, "disk_size"));
        let discard = list(|w| w.put_u8(25, 1).unwrap());
        assert_eq!(refused::<NetConf>(&discard, ParseMode::Change), (AttrErrorKind::Invariant, "discard_my_data"));
        assert!(NetConf::default().parse(&discard, ParseMode::Create).is_ok());
        let error = DiskConf::default().parse(&size, ParseMode::Change).unwrap_err();
        assert_eq!(error.info_text(), "can not change invariant setting");
    }

    #[test]
    fn unknown_fields_are_skipped_unless_they_are_mandatory() {
        let bytes = list(|w| {
            w.put(0, &[]).unwrap();
            w.put_u32(30, 1).unwrap();
            w.put_u32(13, 3).unwrap();
            w.put_u32(500, 1).unwrap();
        });
        let mut net = NetConf::default();
        assert_eq!(net.parse(&bytes, ParseMode::Create), Ok(Present::NONE.with(NetConf::KO_COUNT)));
        assert_eq!(net.ko_count, 3);
        let bytes = list(|w| w.put_u32(30 | MANDATORY, 1).unwrap());
        assert_eq!(refused::<NetConf>(&bytes, ParseMode::Create), (AttrErrorKind::UnknownMandatory, ""));
    }

    #[test]
    fn values_of_the_wrong_form_are_refused() {
        let invalid = |kind: u16, payload: &[u8]| {
            let bytes = list(|w| w.put(kind, payload).unwrap());
            refused::<NetConf>(&bytes, ParseMode::Create)
        };
        for (kind, payload, field) in [
            (8, &[1, 0, 0][..], "timeout"),
            (8, &[1, 0, 0, 0, 0], "timeout"),
            (24, &[], "two_primaries"),
            (6, &0u32.to_ne_bytes(), "wire_protocol"),
            (6, &4u32.to_ne_bytes(), "wire_protocol"),
            (17, &11u32.to_ne_bytes(), "after_sb_0p"),
            (4, b"no nul", "verify_alg"),
            (4, &[&[b'x'; 65][..], &[0]].concat(), "verify_alg"),
            (35, &[0; 129], "my_addr2"),
        ] {
            assert_eq!(invalid(kind, payload), (AttrErrorKind::Invalid, field));
        }
        let longest = list(|w| w.put(4, &[&[b'x'; 64][..], &[0]].concat()).unwrap());
        let mut net = NetConf::default();
        net.parse(&longest, ParseMode::Create).unwrap();
        assert_eq!(net.verify_alg.len(), 63, "one byte more than fits is cut off, as ever");
    }

    #[test]
    fn truncated_lists_are_refused() {
        let bytes = emitted(&NetConf::default(), Direction::Request, Redact::Nothing);
        let nest = payload(&bytes);
        let boundaries: Vec<_> = AttrReader::new(nest)
            .map(|attr| attr.unwrap())
            .scan(0, |end, attr| {
                let start = *end;
                *end += attr.raw.len().next_multiple_of(4);
                Some(start..start + attr.raw.len())
            })
            .collect();
        for len in 0..nest.len() {
            let inside = boundaries.iter().any(|attr| attr.start < len && len < attr.end);
            let parsed = NetConf::default().parse(&nest[..len], ParseMode::Create);
            assert_eq!(parsed.is_err(), inside, "{len}");
        }
    }

    #[test]
    fn clamping_keeps_numbers_within_their_limits() {
        let mut disk = DiskConf { al_extents: 7, c_max_rate: u32::MAX, resync_after: -9, ..DiskConf::default() };
        disk.clamp();
        assert_eq!((disk.al_extents, disk.c_max_rate, disk.resync_after), (67, 4_194_304, -1));
        assert_eq!(disk.c_min_rate, 250);
        let mut resize = ResizeParms { al_stripes: Some(0), ..ResizeParms::default() };
        resize.clamp();
        assert_eq!((resize.al_stripes, resize.al_stripe_size), (Some(1), None));
    }

    #[test]
    fn typed_fields() {
        let disk = DiskConf::default();
        assert_eq!((disk.on_io_error, disk.fencing), (OnIoError::Detach, Fencing::DontCare));
        assert_eq!(NetConf::default().wire_protocol, WireProtocol::C);
        assert_eq!(ResourceOpts::default().on_no_data, OnNoData::IoError);
        let info = StateInfo { uuids: Bytes::from_u64s(&[1, 2, 3, 4]), ..StateInfo::default() };
        let mut parsed = StateInfo::default();
        let bytes = emitted(&info, Direction::Reply, Redact::Nothing);
        parsed.parse(payload(&bytes), ParseMode::Receive).unwrap();
        assert_eq!(parsed.uuids.unwrap().u64_at(2), Some(3));
        assert_eq!(parsed.prev_state, None);
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..random() % 96).map(|_| random() as u8).collect();
            // Lengths and numbers that are likely to mean something.
            for at in (0..bytes.len().saturating_sub(4)).step_by(8) {
                let header = [(4 + random() % 6) as u8, 0, (random() % 40) as u8, (random() % 256) as u8 & 0xc0];
                bytes[at..at + 4].copy_from_slice(&header);
            }
            for mode in [ParseMode::Create, ParseMode::Change, ParseMode::Receive] {
                let mut net = NetConf::default();
                let mut disk = DiskConf::default();
                for result in [net.parse(&bytes, mode), disk.parse(&bytes, mode)] {
                    match result {
                        Ok(_) => taken += 1,
                        Err(_) => refused += 1,
                    }
                }
                net.clamp();
                disk.clamp();
            }
        }
        assert!(taken > 1000 && refused > 1000, "{taken} taken, {refused} refused");
    }
}
