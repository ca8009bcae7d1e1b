//! Tasks whose training split is read piece by piece.

use std::path::Path;

use super::{Table, TaskKind, wanted};
use crate::data::error::DataError;
use crate::data::format::Format;
use crate::data::kind::Split;
use crate::data::meta::MetaFile;
use crate::data::prompt::PromptTemplate;
use crate::data::schema::Schema;
use crate::data::source::split_files;
use crate::data::stream::StreamedSplit;

/// The training split of a folder as it is streamed, and its first records.
pub(super) fn streamed(
    path: &Path,
    meta_file: Option<&MetaFile>,
    template: Option<&PromptTemplate>,
) -> Result<(Option<StreamedSplit>, Option<Table>), DataError> {
    let files = split_files(path, Split::Train)?;
    let Some(first) = files.first() else {
        return Ok((None, None));
    };
    let is_wanted = wanted(meta_file, template);
    let (index, rows) = StreamedSplit::first_rows(&files, is_wanted.clone())?;
    let format = Format::of(first)?;
    let head = Table::of(first, (format, rows), (meta_file, template), None)?;
    let is_labelled = || {
        head.schema
            .kind(&head.rows[0])
            .is_ok_and(|kind| kind == TaskKind::Classification)
    };
    if head.schema == Schema::Own && meta_file.is_none() && is_labelled() {
        let problem =
            "its labels would be collected from all records: expected a task.json that names them";
        return Err(DataError::Streaming {
            path: path.into(),
            problem: problem.into(),
        });
    }
    let split = StreamedSplit::new(index, head.schema, is_wanted, meta_file.cloned());
    Ok((Some(split), Some(head)))
}

/// That nothing can be held out of a split that is streamed.
pub(super) fn not_streamed(path: &Path, problem: &str) -> DataError {
    let expected =
        "holding records out needs all of them: expected a folder with train, validation and test";
    DataError::Streaming {
        path: path.into(),
        problem: format!("{problem}, and {expected}"),
    }
}
