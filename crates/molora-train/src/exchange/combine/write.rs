//! Writing a merged adapter or model.

use std::path::Path;

use molora_models::peft::{MergedDtype, PeftAbout, ResolvedAdapter, save_merged, write_adapter};
use molora_models::{Adaptable, Backbone, TaskHead, save_heads};

use super::Written;
use super::given::Origin;
use crate::TrainError;
use crate::base::place::NewFolder;
use crate::base::write_stop_tokens;
use crate::data::PromptStyle;
use crate::exchange::export::exported;
use crate::store::checkpoint::HEADS;
use crate::verify::{Origin as CertifiedOrigin, certify_adapter, certify_model};

/// What is written, beside the merge itself.
pub(super) struct Beside<'a> {
    pub(super) origins: &'a [Origin],
    /// Folder of the base model.
    pub(super) source: &'a Path,
    pub(super) heads: &'a [(String, TaskHead)],
    pub(super) out: &'a Path,
    /// What the manifest says of the base model.
    pub(super) certified: CertifiedOrigin,
    /// Type of the numbers of a whole model.
    pub(super) dtype: MergedDtype,
}

impl Beside<'_> {
    /// Writes a LoRA as PEFT's files.
    pub(super) fn lora(
        &self,
        base: &Backbone,
        adapter: &ResolvedAdapter,
        base_model: String,
    ) -> Result<Written, TrainError> {
        let new = NewFolder::for_place(self.out)?;
        let about = PeftAbout {
            name: "default".into(),
            base_model,
            task_type: Some(base.task_type().into()),
        };
        write_adapter(new.path(), base, adapter, &about)?;
        self.finish(base, new.path())?;
        certify_adapter(new.path(), base, self.certified.clone())?;
        new.put_new()?;
        let found = exported(self.out.into(), adapter, !self.heads.is_empty());
        Ok(Written::Lora(found))
    }

    /// Writes a whole model.
    pub(super) fn whole(&self, model: &Backbone, modules: usize) -> Result<Written, TrainError> {
        let new = NewFolder::for_place(self.out)?;
        save_merged(model, self.source, new.path(), self.dtype)?;
        self.finish(model, new.path())?;
        certify_model(new.path(), self.certified.clone())?;
        new.put_new()?;
        Ok(Written::Whole { modules })
    }

    /// Heads, and the tokens that end an answer where the experts were prompted with a chat template.
    fn finish(&self, model: &Backbone, folder: &Path) -> Result<(), TrainError> {
        let style = |origin: &Origin| {
            origin
                .run
                .as_ref()
                .map(|run| run.recipe.data.writing.prompt)
        };
        let is_chat = self.origins.iter().find_map(style) == Some(PromptStyle::Chat);
        if is_chat && model.writes() {
            write_stop_tokens(self.source, folder)?;
        }
        if !self.heads.is_empty() {
            let (tasks, heads): (Vec<String>, Vec<Option<TaskHead>>) = self
                .heads
                .iter()
                .map(|(task, head)| (task.clone(), Some(head.clone())))
                .unzip();
            save_heads(&folder.join(HEADS), &tasks, &heads)?;
        }
        Ok(())
    }
}
