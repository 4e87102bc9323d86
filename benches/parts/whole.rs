//! The two ends of the way in one: from payload to records, and from verified segments to payload. Baseline is the AEAD alone.

use aws_lc_rs::rand;
use sealcast::core::id::{Suite, TransactionId};
use sealcast::core::seal::keys::PayloadTagger;
use sealcast::core::seal::suite::HpkeSecret;
use sealcast::core::seal::transaction::{Payload, PrivateHeader};
use sealcast::core::seal::{Event, ParcelContext, ParcelOpener, ParcelSealer, WrapTarget, envelope_bytes};
use sealcast::core::split::header::{Core, Profile};
use sealcast::core::split::stripe::{Splitter, Stripe, recover};
use zeroize::Zeroizing;

use crate::measure::{Arm, Part, Target, Unit};
use crate::sealing::RawAead;
use crate::segments::{EXPIRY, NOW, core, orders, sealed as some_bytes, web};
use crate::splitting::verified;

/// What each parcel costs once, however long it is: its key is drawn and encapsulated. Left out, as the targets do, or not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Envelope {
    /// Left out, and the payload's tag with it: the sealing and splitting alone.
    Untagged,
    /// Left out.
    Made,
    Timed(Suite),
}

impl Envelope {
    fn suite(self) -> Suite {
        match self {
            Self::Untagged | Self::Made => Suite::XWing,
            Self::Timed(suite) => suite,
        }
    }

    fn condition(self) -> &'static str {
        match self {
            Self::Untagged => "envelope and payload tag left out",
            Self::Made => "envelope left out",
            Self::Timed(Suite::X25519) => "with envelope, X25519",
            Self::Timed(Suite::XWing) => "with envelope, X-Wing",
        }
    }
}

pub fn parts() -> Vec<Part> {
    let mut parts = Vec::new();
    for payload in [64 << 10, 1 << 20] {
        let timed = [Suite::X25519, Suite::XWing].map(Envelope::Timed);
        for envelope in [Envelope::Untagged, Envelope::Made].into_iter().chain(timed) {
            let condition = format!("(8,4), {}", envelope.condition());
            let arms = move || seal_split(payload, envelope);
            parts.push(Part::new("seal-split", condition, payload, Unit::Megabytes, arms));
            if envelope == Envelope::Untagged {
                continue; // whoever opens computes no tag
            }
            let condition = format!("(8,4), 4 data lost, {}", envelope.condition());
            let arms = move || recover_open(payload, envelope);
            parts.push(Part::new("recover-open", condition, payload, Unit::Megabytes, arms));
        }
    }
    parts
}

/// One transaction of this length to one destination, over three domains.
#[derive(Clone)]
struct Parcel {
    core: Core,
    secret: HpkeSecret,
    payload: Vec<u8>,
}

impl Parcel {
    fn new(payload: usize, suite: Suite) -> Self {
        let secret = HpkeSecret::generate(suite, &[7; 32]).unwrap();
        let mut core = core(&web(), 1, Profile::coded(3));
        (core.suite, core.destinations[0].key) = (suite, secret.public().id());
        Self { core, secret, payload: some_bytes(payload, 1) }
    }

    fn begin(&self, out: &mut Vec<u8>) -> ParcelSealer {
        let mut random = Zeroizing::new([0; 32]);
        rand::fill(&mut random[..]).unwrap();
        let targets = [WrapTarget { tag: orders(), public: self.secret.public().clone() }];
        ParcelSealer::new(&self.core.context(), &targets, 1, &random, &[[3; 64]], out).unwrap()
    }

    fn header(&self) -> PrivateHeader {
        let told = Payload::plain(self.payload.len() as u64, PayloadTagger::whole(&web(), &self.payload));
        PrivateHeader::new(TransactionId::from_parts(NOW, [1; 10]), EXPIRY, Some(told), [orders()])
    }

    fn end(&self, mut sealer: ParcelSealer, header: PrivateHeader, mut out: Vec<u8>) -> Vec<Stripe> {
        sealer.seal(header, &self.payload, &mut out).unwrap();
        sealer.finish().unwrap();
        let mut splitter = Splitter::new(self.core.clone(), web()).unwrap();
        let mut stripes = splitter.push(&out).unwrap();
        stripes.push(splitter.finish().unwrap());
        stripes
    }

    fn stripes(&self) -> Vec<Stripe> {
        let mut out = Vec::new();
        let sealer = self.begin(&mut out);
        self.end(sealer, self.header(), out)
    }

    fn opener(&self) -> ParcelOpener {
        let public = self.secret.public();
        let destinations = vec![(orders(), public.id())];
        let context = ParcelContext { ctx: self.core.context(), suite: public.suite(), destinations };
        ParcelOpener::new(context, orders(), self.secret.clone())
    }
}

fn seal_split(payload: usize, envelope: Envelope) -> Vec<Arm> {
    let parcel = Parcel::new(payload, envelope.suite());
    let before = parcel.clone();
    let prepare = move || {
        let mut out = Vec::with_capacity(payload + (64 << 10));
        let sealer = before.begin(&mut out);
        (sealer, out)
    };
    let own = match envelope {
        Envelope::Untagged => {
            let header = parcel.header();
            let run = move |(sealer, out)| parcel.end(sealer, header.clone(), out);
            Arm::each("sealcast", prepare, run)
        }
        Envelope::Made => Arm::each("sealcast", prepare, move |(sealer, out)| parcel.end(sealer, parcel.header(), out)),
        Envelope::Timed(_) => Arm::each("sealcast", || (), move |()| parcel.stripes()),
    };
    let least = if payload < 1 << 20 { 0.5 } else { 0.6 };
    vec![own, judged(RawAead::sealing(payload), envelope, least)]
}

/// Four of eight data shards of every stripe are lost; segments are verified before, alone, as they come.
fn recover_open(payload: usize, envelope: Envelope) -> Vec<Arm> {
    let parcel = Parcel::new(payload, envelope.suite());
    let segments = verified(&parcel.stripes(), 4);
    let first = recover(&segments[0]).unwrap();
    let made = match envelope {
        Envelope::Timed(_) => 0,
        _ => envelope_bytes(envelope.suite(), 1),
    };
    let prepare = move || {
        let mut opener = parcel.opener();
        opener.push(&first[..made], &mut |_| ()).unwrap();
        opener
    };
    let mut out = Vec::with_capacity(payload);
    let run = move |mut opener: ParcelOpener| {
        out.clear();
        let mut sink = |event: Event<'_>| {
            if let Event::Payload { bytes, .. } = event {
                out.extend_from_slice(bytes);
            }
        };
        for (number, segments) in segments.iter().enumerate() {
            let sealed = recover(segments).unwrap();
            let skipped = if number == 0 { made } else { 0 };
            opener.push(&sealed[skipped..], &mut sink).unwrap();
        }
        opener.finish(&mut sink).unwrap();
        assert_eq!(out.len(), payload);
    };
    vec![Arm::each("sealcast", prepare, run), judged(RawAead::opening(payload), envelope, 0.6)]
}

/// The targets are about what grows with the payload.
fn judged(baseline: Arm, envelope: Envelope, least: f64) -> Arm {
    if envelope == Envelope::Made { baseline.target(Target::AtLeast(least)) } else { baseline }
}
