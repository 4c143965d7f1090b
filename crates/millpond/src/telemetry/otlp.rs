//! The encoding of spans: protobuf of OTLP (<https://opentelemetry.io/docs/specs/otlp/>), written directly. The library's
//! exporter first builds a structure with a string for each name and value, which cost a tenth of a worker's time.

use opentelemetry::Value;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::resource::v1::Resource as WireResource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// The semantic conventions that names and attributes of our spans follow.
pub(super) const CONVENTIONS: &str = "https://opentelemetry.io/schemas/1.45.0";

/// Field numbers of a span, of its parts and of its containers (trace.proto, common.proto).
pub(super) mod field {
    pub(in crate::telemetry) const TRACE_ID: u32 = 1;
    pub(in crate::telemetry) const SPAN_ID: u32 = 2;
    pub(in crate::telemetry) const PARENT_SPAN_ID: u32 = 4;
    pub(in crate::telemetry) const NAME: u32 = 5;
    pub(in crate::telemetry) const KIND: u32 = 6;
    pub(in crate::telemetry) const START_TIME: u32 = 7;
    pub(in crate::telemetry) const END_TIME: u32 = 8;
    pub(in crate::telemetry) const ATTRIBUTES: u32 = 9;
    pub(in crate::telemetry) const EVENTS: u32 = 11;
    pub(in crate::telemetry) const LINKS: u32 = 13;
    pub(in crate::telemetry) const DROPPED_LINKS: u32 = 14;
    pub(in crate::telemetry) const STATUS: u32 = 15;
    pub(in crate::telemetry) const FLAGS: u32 = 16;
    pub(in crate::telemetry) const EVENT_TIME: u32 = 1;
    pub(in crate::telemetry) const EVENT_NAME: u32 = 2;
    pub(in crate::telemetry) const EVENT_ATTRIBUTES: u32 = 3;
    pub(in crate::telemetry) const LINK_FLAGS: u32 = 6;
    pub(in crate::telemetry) const STATUS_MESSAGE: u32 = 2;
    pub(in crate::telemetry) const STATUS_CODE: u32 = 3;
    pub(in crate::telemetry) const KEY: u32 = 1;
    pub(in crate::telemetry) const VALUE: u32 = 2;
    pub(in crate::telemetry) const TEXT: u32 = 1;
    pub(in crate::telemetry) const NUMBER: u32 = 3;
    pub(in crate::telemetry) const RESOURCE_SPANS: u32 = 1;
    pub(in crate::telemetry) const RESOURCE: u32 = 1;
    pub(in crate::telemetry) const SCOPE_SPANS: u32 = 2;
    pub(in crate::telemetry) const RESOURCE_SCHEMA: u32 = 3;
    pub(in crate::telemetry) const SCOPE: u32 = 1;
    pub(in crate::telemetry) const SPANS: u32 = 2;
    pub(in crate::telemetry) const SCOPE_SCHEMA: u32 = 3;
}

/// The value of an attribute.
#[derive(Debug, Clone, Copy)]
pub enum AttributeValue<'a> {
    /// Text.
    Text(&'a str),
    /// A number.
    Number(i64),
}

impl<'a> From<&'a str> for AttributeValue<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for AttributeValue<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl From<AttributeValue<'_>> for Value {
    fn from(value: AttributeValue<'_>) -> Self {
        match value {
            AttributeValue::Text(text) => text.to_owned().into(),
            AttributeValue::Number(number) => number.into(),
        }
    }
}

impl From<i64> for AttributeValue<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

pub(super) fn number(field: u32, value: u64, to: &mut Vec<u8>) {
    encode_key(field, WireType::Varint, to);
    encode_varint(value, to);
}

pub(super) fn fixed32(field: u32, value: u32, to: &mut Vec<u8>) {
    encode_key(field, WireType::ThirtyTwoBit, to);
    to.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn fixed64(field: u32, value: u64, to: &mut Vec<u8>) {
    encode_key(field, WireType::SixtyFourBit, to);
    to.extend_from_slice(&value.to_le_bytes());
}

/// The begin of a field that is `length` bytes long.
pub(super) fn begin(field: u32, length: usize, to: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, to);
    match u8::try_from(length) {
        // The usual case, without the loop of a varint.
        Ok(short) if short < 0x80 => to.push(short),
        _ => encode_varint(length as u64, to),
    }
}

/// Text, bytes, or a message.
pub(super) fn bytes(field: u32, value: &[u8], to: &mut Vec<u8>) {
    begin(field, value.len(), to);
    to.extend_from_slice(value);
}

/// Bytes that a field with a number below 16 takes, when its content is `of` bytes long.
fn length(of: usize) -> usize {
    1 + encoded_len_varint(of as u64) + of
}

pub(super) fn attribute(field: u32, key: &str, value: AttributeValue<'_>, to: &mut Vec<u8>) {
    let value_length = match value {
        AttributeValue::Text(text) => length(text.len()),
        AttributeValue::Number(n) => 1 + encoded_len_varint(n.cast_unsigned()),
    };
    begin(field, length(key.len()) + length(value_length), to);
    bytes(field::KEY, key.as_bytes(), to);
    begin(field::VALUE, value_length, to);
    match value {
        AttributeValue::Text(text) => bytes(field::TEXT, text.as_bytes(), to),
        AttributeValue::Number(n) => number(field::NUMBER, n.cast_unsigned(), to),
    }
}

/// The encoded message around the spans: which process they come from.
#[derive(Debug)]
pub(super) struct Envelope {
    resource: Vec<u8>,
    schema: Vec<u8>,
    scope: Vec<u8>,
}

impl Envelope {
    pub(super) fn new(resource: &Resource) -> Self {
        let of = ResourceAttributesWithSchema::from(resource);
        let wire = WireResource { attributes: of.attributes.0, ..WireResource::default() };
        let (mut resource, mut schema, mut scope) = (Vec::new(), Vec::new(), Vec::new());
        bytes(field::RESOURCE, &wire.encode_to_vec(), &mut resource);
        if let Some(url) = of.schema_url {
            bytes(field::RESOURCE_SCHEMA, url.as_bytes(), &mut schema);
        }
        let ours = opentelemetry_proto::tonic::common::v1::InstrumentationScope {
            name: "millpond".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        bytes(field::SCOPE, &ours.encode_to_vec(), &mut scope);
        bytes(field::SCOPE_SCHEMA, CONVENTIONS.as_bytes(), &mut scope);
        Self { resource, schema, scope }
    }

    /// A request with our own `spans`, and with those of handlers, each already in its scope.
    pub(super) fn request(&self, spans: &[u8], scoped: &[u8]) -> Vec<u8> {
        let ours = self.scope.len() + spans.len();
        let ours_length = if spans.is_empty() { 0 } else { length(ours) };
        let all = self.resource.len() + ours_length + scoped.len() + self.schema.len();
        let mut request = Vec::with_capacity(length(all));
        begin(field::RESOURCE_SPANS, all, &mut request);
        request.extend_from_slice(&self.resource);
        if !spans.is_empty() {
            begin(field::SCOPE_SPANS, ours, &mut request);
            request.extend_from_slice(&self.scope);
            request.extend_from_slice(spans);
        }
        request.extend_from_slice(scoped);
        request.extend_from_slice(&self.schema);
        request
    }
}

/// How many spans of a request were refused, by what the receiver answered.
pub(super) fn refused(answer: &[u8]) -> usize {
    let partial = ExportTraceServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
    partial.map_or(0, |partial| usize::try_from(partial.rejected_spans).unwrap_or(0))
}

/// Appends an encoded span to a request.
pub(super) fn span(wire: &[u8], to: &mut Vec<u8>) {
    bytes(field::SPANS, wire, to);
}

/// Whether this is one span in its scope, as [`scoped`] appends it: what a child says is not believed.
pub(super) fn is_scoped_span(wire: &[u8]) -> bool {
    // Of a list of scopes, as a request has it.
    ResourceSpans::decode(wire).is_ok_and(|read| {
        let [scope] = read.scope_spans.as_slice() else { return false };
        let [span] = scope.spans.as_slice() else { return false };
        let has_ids = span.trace_id.len() == 16 && span.span_id.len() == 8 && span.parent_span_id.len() == 8;
        has_ids && read.resource.is_none() && read.schema_url.is_empty()
    })
}

/// Appends a span that a handler made with `tracing`, in its scope.
pub(super) fn scoped(span: SpanData, to: &mut Vec<u8>) {
    let schema_url = span.instrumentation_scope.schema_url().unwrap_or_default().to_owned();
    let scope = Some((span.instrumentation_scope.clone(), None).into());
    let wire = ScopeSpans { scope, spans: vec![span.into()], schema_url };
    bytes(field::SCOPE_SPANS, &wire.encode_to_vec(), to);
}
