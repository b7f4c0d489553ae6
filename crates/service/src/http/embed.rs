//! `/api/v1/embed` and `/api/v1/embed/batch`: texts to vectors.

use super::error::{ApiError, BodyRefusals, ModelRefusals, Problem, Step};
use super::observe::Timing;
use super::parts::Writer;
use super::validate::{Fields, Problems};
use super::{App, body, revision};
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use nexus_engine::{EmbedItem, Embedding, Retriever, Role};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// One control to embed.
#[derive(Debug, ToSchema)]
#[schema(example = json!({ "control_id": "AC-7", "text": "Multi-factor authentication is required for all users." }))]
#[allow(dead_code, reason = "the schema of what `Item` is read from")]
pub(super) struct EmbedRequest {
    /// The caller's name of the control; comes back as it is.
    control_id: String,
    /// The text to embed: not only white space. What is beyond the model's window is cut off.
    #[schema(min_length = 1, pattern = r"\S")]
    text: String,
    /// A task description that the model reads before the text, for queries. Empty counts as absent.
    instruction: Option<String>,
    /// Keep this many leading components (Matryoshka), then normalize; at most the model's. All if absent.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// How the vector is written.
    encoding_format: Option<EncodingFormat>,
}

/// Controls to embed, with what holds for all of them. An item's own `instruction`, `dimensions` or `encoding_format`
/// wins.
#[derive(Debug, ToSchema)]
#[schema(example = json!({ "items": [
    { "control_id": "AC-7", "text": "Multi-factor authentication is required for all users." },
    { "control_id": "SC-2", "text": "Data at rest is encrypted." },
] }))]
#[allow(dead_code, reason = "the schema of what `Item`s are read from")]
pub(super) struct EmbedBatchRequest {
    /// The controls; there may be none.
    items: Vec<EmbedRequest>,
    /// As in a single request, for items without their own.
    instruction: Option<String>,
    /// As in a single request, for items without their own.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// As in a single request, for items without their own.
    encoding_format: Option<EncodingFormat>,
}

/// How a vector is written: `float`, a list of numbers (the default), or `base64`, its components as little-endian f32
/// in base64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

/// One embedded control.
#[derive(Debug, ToSchema)]
#[schema(example = json!({ "control_id": "AC-7", "embedding": [0.0132, -0.0418, 0.0271], "cache_hit": false }))]
#[allow(dead_code, reason = "the schema of what `write_result` writes")]
pub(super) struct EmbedResponse {
    /// The caller's name of the control.
    control_id: String,
    /// The vector, of unit length.
    embedding: Vector,
    /// Whether the vector came from the cache.
    cache_hit: bool,
}

/// A vector, in the format that was asked for.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "the schema of what `write_result` writes")]
pub(super) enum Vector {
    /// `float`: each number is the shortest that stands for the same f32.
    Float(Vec<f32>),
    /// `base64`: little-endian f32.
    Base64(String),
}

/// The embedded controls, in the order of the request.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "the schema of what `respond` writes")]
pub(super) struct EmbedBatchResponse {
    /// One for each item.
    results: Vec<EmbedResponse>,
}

/// Embeds one control.
#[utoipa::path(
    post,
    path = "/api/v1/embed",
    tag = "controls",
    operation_id = "embed",
    params(Timing),
    request_body = EmbedRequest,
    responses(
        (
            status = 200,
            description = "The vector.",
            body = EmbedResponse,
            headers(("x-nexus-model-revision" = String, description = "Which revision of the model answered.")),
        ),
        BodyRefusals,
        ModelRefusals,
    ),
)]
pub(super) async fn single(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let bytes = body::read_json(&app, request, app.limits.text_body_bytes_max).await?;
    let item = body::off_runtime(bytes.len(), move || parse_single(&bytes)).await??;
    let retriever = app.retriever()?;
    embed(&app, &*retriever, vec![item], Form::Single).await
}

/// Embeds many controls. The answers come in the order of the items.
#[utoipa::path(
    post,
    path = "/api/v1/embed/batch",
    tag = "controls",
    operation_id = "embed_batch",
    params(Timing),
    request_body = EmbedBatchRequest,
    responses(
        (
            status = 200,
            description = "The vectors, in the order of the items.",
            body = EmbedBatchResponse,
            headers(("x-nexus-model-revision" = String, description = "Which revision of the model answered.")),
        ),
        BodyRefusals,
        ModelRefusals,
    ),
)]
pub(super) async fn batch(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let bytes = body::read_json(&app, request, app.limits.text_body_bytes_max).await?;
    let items_max = app.limits.batch_items_max;
    let items = body::off_runtime(bytes.len(), move || parse_batch(&bytes, items_max)).await??;
    let retriever = app.retriever()?;
    embed(&app, &*retriever, items, Form::Batch).await
}

/// A control to embed, checked but for what only the model knows.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) control_id: String,
    pub(super) text: String,
    pub(super) options: Options,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) instruction: Option<Arc<str>>,
    pub(super) dimensions: Option<Dimensions>,
    pub(super) format: EncodingFormat,
}

/// A number of components, and where it was asked for.
#[derive(Clone, Debug)]
pub(super) struct Dimensions {
    pub(super) count: usize,
    loc: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Single,
    Batch,
}

pub(super) fn parse_single(bytes: &[u8]) -> Result<Item, ApiError> {
    let mut problems = Problems::default();
    let item = parse_item(Fields::of_body(bytes)?, &Options::default(), &mut problems);
    problems.finish(item)
}

pub(super) fn parse_batch(bytes: &[u8], items_max: usize) -> Result<Vec<Item>, ApiError> {
    let mut problems = Problems::default();
    let mut body = Fields::of_body(bytes)?;
    let defaults = parse_options(&mut body, &Options::default(), &mut problems);
    let items = body
        .list("items", items_max, &mut problems)
        .into_iter()
        .enumerate()
        .map(|(index, value)| {
            let fields = Fields::of_item(value, "items", index, &mut problems);
            parse_item(fields, &defaults, &mut problems)
        })
        .collect();
    problems.finish(items)
}

fn parse_item(mut fields: Fields, defaults: &Options, problems: &mut Problems) -> Item {
    Item {
        control_id: fields.string("control_id", problems),
        text: fields.text("text", problems),
        options: parse_options(&mut fields, defaults, problems),
    }
}

fn parse_options(fields: &mut Fields, defaults: &Options, problems: &mut Problems) -> Options {
    let instruction = match fields.optional_string("instruction", problems) {
        // A form that was left blank is not an instruction.
        Some(instruction) => (!instruction.is_empty()).then(|| instruction.into()),
        None => defaults.instruction.clone(),
    };
    let dimensions = match fields.optional_positive("dimensions", problems) {
        Some(count) => Some(Dimensions { count, loc: fields.loc_of("dimensions") }),
        None => defaults.dimensions.clone(),
    };
    let format = match fields.optional_choice("encoding_format", ["float", "base64"], problems) {
        Some("base64") => EncodingFormat::Base64,
        Some(_) => EncodingFormat::Float,
        None => defaults.format,
    };
    Options { instruction, dimensions, format }
}

async fn embed(app: &App, retriever: &dyn Retriever, items: Vec<Item>, form: Form) -> Result<Response, ApiError> {
    let dimensions_max = retriever.info().dimensions;
    check_dimensions(&items, dimensions_max)?;
    let (heads, requests): (Vec<_>, Vec<_>) = items
        .into_iter()
        .map(|Item { control_id, text, options }| {
            let dimensions = options.dimensions.map(|dimensions| dimensions.count);
            ((control_id, options.format), EmbedItem { text, instruction: options.instruction, dimensions })
        })
        .unzip();
    let embeddings = if requests.is_empty() { Vec::new() } else { embed_all(retriever, requests, form).await? };
    if embeddings.len() != heads.len() {
        tracing::error!(asked = heads.len(), got = embeddings.len(), "the retriever lost count");
        return Err(ApiError::internal());
    }
    let bytes = heads.len() * dimensions_max * size_of::<f32>();
    let embedded = Instant::now();
    let response = body::off_runtime(bytes, move || respond(&heads, &embeddings, form)).await??;
    app.monitor.serialized(Role::Retriever, embedded.elapsed());
    Ok(revision::mark(response, &retriever.info().revision))
}

async fn embed_all(
    retriever: &dyn Retriever,
    requests: Vec<EmbedItem>,
    form: Form,
) -> Result<Vec<Embedding>, ApiError> {
    let place = |field, index| match (form, index) {
        (Form::Batch, Some(index)) => vec![Step::Key("items"), Step::Index(index), Step::Key(field)],
        _ => vec![Step::Key(field)],
    };
    retriever.embed(requests).await.map_err(|error| ApiError::of_engine(error, place))
}

fn check_dimensions(items: &[Item], max: usize) -> Result<(), ApiError> {
    let mut problems = Problems::default();
    for Dimensions { count, loc } in items.iter().filter_map(|item| item.options.dimensions.as_ref()) {
        if *count > max {
            problems.push(
                Problem::new("less_than_equal", loc.clone(), format!("Input should be less than or equal to {max}"))
                    .with_input(&json!(count))
                    .with_ctx(json!({ "le": max })),
            );
        }
    }
    problems.finish(())
}

fn respond(heads: &[(String, EncodingFormat)], embeddings: &[Embedding], form: Form) -> Result<Response, ApiError> {
    let mut out = Writer::default();
    if let Form::Batch = form {
        out.text().extend_from_slice(b"{\"results\":[");
    }
    for (i, ((control_id, format), embedding)) in heads.iter().zip(embeddings).enumerate() {
        if i > 0 {
            out.text().push(b',');
        }
        write_result(control_id, *format, embedding, &mut out).map_err(|error| {
            tracing::error!(%error, "an embedding can not be written");
            ApiError::internal()
        })?;
    }
    if let Form::Batch = form {
        out.text().extend_from_slice(b"]}");
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], out.finish()).into_response())
}

/// By hand, because a vector takes most of the response: its numbers are written as f32, and faster than through serde.
fn write_result(
    control_id: &str,
    format: EncodingFormat,
    embedding: &Embedding,
    out: &mut Writer,
) -> serde_json::Result<()> {
    let Embedding { vector, cache_hit } = embedding;
    out.text().extend_from_slice(b"{\"control_id\":");
    control_id.serialize(&mut serde_json::Serializer::new(out.text()))?;
    out.text().extend_from_slice(b",\"embedding\":");
    let (form, write) = match format {
        EncodingFormat::Float => (0, nexus_vectors::write_f32_json as fn(&[f32], &mut Vec<u8>)),
        EncodingFormat::Base64 => (1, write_base64_json as _),
    };
    if *cache_hit {
        out.shared(vector.rendered(form, |vector| bytes_of(vector, write)));
    } else {
        // Not kept: most vectors are never asked for again.
        write(vector, out.text());
    }
    out.text().extend_from_slice(b",\"cache_hit\":");
    out.text().extend_from_slice(if *cache_hit { b"true}" } else { b"false}" });
    Ok(())
}

fn bytes_of(vector: &[f32], write: fn(&[f32], &mut Vec<u8>)) -> Bytes {
    let mut json = Vec::new();
    write(vector, &mut json);
    // It may be kept for long, and as many bytes are counted as are in it.
    json.into_boxed_slice().into()
}

fn write_base64_json(vector: &[f32], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(nexus_vectors::encode_base64(vector).as_bytes());
    out.push(b'"');
}
