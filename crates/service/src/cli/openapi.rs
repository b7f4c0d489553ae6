//! `nexus openapi`.

use super::Failure;

pub(super) fn run() -> Result<(), Failure> {
    super::print(&crate::http::openapi_document())
}
