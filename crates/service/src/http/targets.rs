//! `/api/v1/targets`: resident target sets, sent once and then named by retrieve requests. Needs no model.

use super::App;
use super::error::{ApiError, BodyRefusals, ErrorDetail, Problem, Step};
use super::ingest::{LIMITS, Opened, Sink, ingest};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use nexus_storage::{SetDtype, SetInfo, SetList, SetName, SetWriter, TargetError, TargetStore};
use nexus_vectors::{BodyError, Dtype, Head, Ids, Outcome, Purpose, Rows, check_ids, norms, refusal};
use serde::Serialize;
use std::sync::{Arc, OnceLock};
use utoipa::{IntoResponses, ToSchema};

/// After how long to ask again while the place of shared sets does not answer.
const UNAVAILABLE_RETRY_AFTER_S: u64 = 2;

/// The sets, once their folder is open.
#[derive(Default)]
pub struct Resident(OnceLock<Result<Arc<dyn TargetStore>, String>>);

impl Resident {
    /// Says what came of opening the folder.
    pub fn opened(&self, result: Result<Arc<dyn TargetStore>, String>) {
        // The first word counts.
        let _ = self.0.set(result);
    }

    pub(super) fn sets(&self) -> Result<Arc<dyn TargetStore>, ApiError> {
        match self.0.get() {
            Some(Ok(sets)) => Ok(Arc::clone(sets)),
            Some(Err(reason)) => Err(ApiError::refused(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("resident target sets are not available: {reason}"),
            )),
            None => Err(ApiError::unavailable("resident target sets are being opened", 1)),
        }
    }
}

impl std::fmt::Debug for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resident").finish_non_exhaustive()
    }
}

/// Vectors to keep. Any of the forms that retrieve takes: lists of numbers, base64, or a safetensors file
/// (`application/octet-stream`) with a tensor `target_embeddings` and, in its metadata, `target_ids`.
#[derive(Debug, ToSchema)]
#[schema(example = json!({ "target_embeddings": [[0.8, 0.6], [-0.6, 0.8]], "target_ids": ["AC-7", "SC-2"] }))]
#[allow(dead_code, reason = "the schema of what `nexus_vectors::BodyParser` reads")]
pub(super) struct TargetSetBody {
    /// The vectors.
    target_embeddings: super::retrieve::MatrixForm,
    /// Their names, one each.
    target_ids: Option<Vec<String>>,
    /// Components of each vector. Required where all are one string.
    #[schema(minimum = 1, maximum = 65536)]
    dimensions: Option<usize>,
}

/// A resident set.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TargetSetInfo {
    /// Its name.
    #[schema(example = "nist-800-53r5")]
    name: String,
    /// Vectors in it.
    rows: usize,
    /// Components of each.
    dimensions: usize,
    /// How components are kept: `F32`, `F16` or `BF16`, as they were sent.
    #[schema(example = "F32")]
    dtype: &'static str,
    /// Whether its vectors have names.
    has_ids: bool,
    /// Bytes on disk.
    bytes: u64,
    /// When it was put, in seconds since 1970.
    created_unix_s: u64,
}

impl From<SetInfo> for TargetSetInfo {
    fn from(info: SetInfo) -> Self {
        let SetInfo { name, rows, dimensions, dtype, bytes, created_unix_s, has_ids } = info;
        Self { name, rows, dimensions, dtype: dtype.name(), has_ids, bytes, created_unix_s }
    }
}

/// All resident sets.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TargetSetList {
    /// By name.
    targets: Vec<TargetSetInfo>,
    /// Bytes of all together.
    bytes: u64,
    /// Bytes that all together may have; of shared sets, those that may lie on one machine.
    bytes_max: u64,
}

/// Keeps a set of targets under a name, in place of the one that had it. Requests under way go on with that one.
#[utoipa::path(
    put,
    path = "/api/v1/targets/{name}",
    tag = "targets",
    operation_id = "put_targets",
    params((
        "name" = String, Path,
        description = "1 to 128 of A-Z a-z 0-9 . _ -, no dot first",
        min_length = 1, max_length = 128, pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$",
    )),
    request_body(content((TargetSetBody = "application/json"), (super::retrieve::SafetensorsFile = "application/octet-stream"))),
    responses(
        (status = 200, description = "The set is in the place of another.", body = TargetSetInfo),
        (status = 201, description = "The set is there.", body = TargetSetInfo),
        (status = 507, description = "There is no room for it.", body = ErrorDetail),
        BodyRefusals,
    ),
)]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = Opened::of(&app, request)?;
    let writer = match begin(&app, &name).await {
        Ok(writer) => writer,
        Err(error) => return Err(body.refuse(error)),
    };
    let mut writing = Writing { writer: Some(writer), rows: 0 };
    let (head, _share) = ingest(&app, body, Purpose::Keep, &mut writing).await?;
    let writer = writing.writer.take().ok_or_else(ApiError::internal)?;
    let rows = writing.rows;
    let writer = blocking(move || finish(writer, head, rows)).await?;
    let (info, replaced) = app.targets.sets()?.finish(writer).await?;
    let status = if replaced { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(TargetSetInfo::from(info))).into_response())
}

async fn begin(app: &App, name: &str) -> Result<SetWriter, ApiError> {
    let name = parse_name(name)?;
    Ok(app.targets.sets()?.begin(&name).await?)
}

/// How a request without a body may be refused.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "for the specification")]
pub(super) enum PlainRefusals {
    /// A header makes no sense.
    #[response(status = 400)]
    Malformed(ErrorDetail),
    /// The service asks for API keys, and none came with the request, or a wrong one.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`")))]
    Unauthorized(ErrorDetail),
    /// The service failed.
    #[response(status = 500)]
    Failed(ErrorDetail),
    /// Resident sets are not available.
    #[response(status = 503)]
    Unavailable(ErrorDetail),
    /// The request took too long.
    #[response(status = 504)]
    TimedOut(ErrorDetail),
}

/// What is known of a resident set.
#[utoipa::path(
    get,
    path = "/api/v1/targets/{name}",
    tag = "targets",
    operation_id = "get_targets",
    params(("name" = String, Path, description = "The set's name")),
    responses(
        (status = 200, description = "The set.", body = TargetSetInfo),
        (status = 404, description = "There is no set of that name.", body = ErrorDetail),
        PlainRefusals,
    ),
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<TargetSetInfo>, ApiError> {
    let info = app.targets.sets()?.info(&name).await?.ok_or_else(|| unknown(&name))?;
    Ok(Json(info.into()))
}

/// Removes a resident set. Requests under way go on with it.
#[utoipa::path(
    delete,
    path = "/api/v1/targets/{name}",
    tag = "targets",
    operation_id = "delete_targets",
    params(("name" = String, Path, description = "The set's name")),
    responses(
        (status = 204, description = "The set is gone."),
        (status = 404, description = "There is no set of that name.", body = ErrorDetail),
        PlainRefusals,
    ),
)]
pub(super) async fn delete(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    if app.targets.sets()?.delete(&name).await? { Ok(StatusCode::NO_CONTENT) } else { Err(unknown(&name)) }
}

/// All resident sets.
#[utoipa::path(
    get,
    path = "/api/v1/targets",
    tag = "targets",
    operation_id = "list_targets",
    responses(
        (status = 200, description = "The sets, by name.", body = TargetSetList),
        PlainRefusals,
    ),
)]
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<TargetSetList>, ApiError> {
    let SetList { sets, bytes, bytes_max } = app.targets.sets()?.list().await?;
    let targets = sets.into_iter().map(TargetSetInfo::from).collect();
    Ok(Json(TargetSetList { targets, bytes, bytes_max }))
}

/// 404.
pub(super) fn unknown(name: &str) -> ApiError {
    ApiError::refused(StatusCode::NOT_FOUND, format!("there is no target set {name:?}"))
}

fn parse_name(name: &str) -> Result<SetName, ApiError> {
    SetName::parse(name).map_err(|error| {
        let loc = vec![Step::Key("path"), Step::Key("name")];
        ApiError::problem(Problem::new("value_error", loc, format!("Value error, {error}")))
    })
}

/// What can go wrong while a set is written.
enum PutError {
    Store(TargetError),
    Body(BodyError),
    Lost,
}

impl From<TargetError> for PutError {
    fn from(error: TargetError) -> Self {
        Self::Store(error)
    }
}

impl From<BodyError> for PutError {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

impl From<PutError> for ApiError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Body(error) => error.into(),
            PutError::Lost => Self::internal(),
            PutError::Store(error) => error.into(),
        }
    }
}

impl From<TargetError> for ApiError {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::TooLarge { .. } | TargetError::TooMany { .. } | TargetError::DiskFull { .. } => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a target set was not kept");
                Self::refused(StatusCode::INSUFFICIENT_STORAGE, error.to_string())
            }
            TargetError::Unavailable { .. } => Self::unavailable(error.to_string(), UNAVAILABLE_RETRY_AFTER_S),
            TargetError::NotASet { .. } => {
                tracing::error!(error = &error as &dyn std::error::Error, "a target set can not be used");
                Self::refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
            error => {
                tracing::error!(error = &error as &dyn std::error::Error, "a target set was not written");
                Self::internal()
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PutError> + Send + 'static,
) -> Result<T, ApiError> {
    let span = tracing::Span::current();
    let result = tokio::task::spawn_blocking(move || span.in_scope(work)).await.unwrap_or_else(|error| {
        tracing::error!(%error, "work on a target set did not finish");
        Err(PutError::Lost)
    });
    Ok(result?)
}

/// Rows on their way to a file.
struct Writing {
    /// There but while it writes.
    writer: Option<SetWriter>,
    rows: usize,
}

impl Sink for Writing {
    async fn take(&mut self, outcome: Outcome) -> Result<(), ApiError> {
        let (Some(mut writer), Outcome::Kept(kept)) = (self.writer.take(), outcome) else {
            return Err(ApiError::internal());
        };
        self.rows += kept.norms.len();
        let written = blocking(move || {
            let bytes = kept.data.as_bytes();
            match kept.dim {
                Some(dim) => {
                    writer.set_shape(set_dtype(kept.data.dtype()), dim)?;
                    writer.push(bytes, &kept.norms)?;
                }
                None => writer.push_bytes(bytes)?,
            }
            Ok(writer)
        });
        self.writer = Some(written.await?);
        Ok(())
    }

    /// Rows are on the disk, their norms are not.
    fn held_bytes(&self) -> usize {
        self.rows * size_of::<f64>()
    }
}

impl Drop for Writing {
    /// What was written of a set that is given up is removed, which takes its time.
    fn drop(&mut self) {
        if let (Some(writer), Ok(runtime)) = (self.writer.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(writer));
        }
    }
}

fn set_dtype(dtype: Dtype) -> SetDtype {
    match dtype {
        Dtype::F32 => SetDtype::F32,
        Dtype::F16 => SetDtype::F16,
        Dtype::Bf16 => SetDtype::Bf16,
    }
}

/// Adds what is known only at the end of the body.
fn finish(mut writer: SetWriter, head: Head, rows: usize) -> Result<SetWriter, PutError> {
    let mut rows = rows;
    if let (Some(dim), true) = (head.dim, head.is_flat()) {
        writer.set_shape(SetDtype::F32, dim)?;
        let row_bytes = dim * size_of::<f32>();
        // What is no whole number of rows is the client's mistake, and named as that.
        let length = usize::try_from(writer.rows_bytes()).unwrap_or(usize::MAX);
        nexus_vectors::check_whole_rows(length, dim, &LIMITS)?;
        let mut first_row = 0;
        writer.measure(|bytes, row_norms| -> Result<(), PutError> {
            let measured = Rows::from_bytes(bytes, Dtype::F32, dim).map_err(|_| PutError::Lost)?;
            norms(measured, first_row, row_norms).map_err(refusal)?;
            first_row += bytes.len() / row_bytes;
            Ok(())
        })?;
        rows = first_row;
    }
    check_ids(head.ids.as_ref(), rows)?;
    writer.push_ids(head.ids.iter().flat_map(Ids::iter))?;
    Ok(writer)
}
