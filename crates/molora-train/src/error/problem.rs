//! What can be wrong with a folder or file that a command is given.

use std::path::PathBuf;

use molora_adapters::AdapterError;

use super::GrowthProblem;
use crate::report::format::mebibytes;

/// Why a folder or file cannot be used as asked; the error names it in front of this.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the texts say what their fields are")]
pub enum RunProblem {
    /// What needs all training records, of a run whose data are streamed.
    #[error(
        "needs all training records in memory, and data.streaming is true: leave one of them out"
    )]
    Streamed,
    /// A file where a folder belongs.
    #[error("is a file, expected a folder")]
    IsFile,
    /// A folder to write without a name.
    #[error("is no name of a new folder; choose another --out, such as runs/first")]
    NoName,
    /// A path that cannot be that of a file.
    #[error("is no name of a new file; choose another --out, such as model.gguf")]
    NoFileName,
    /// A run folder that is there already.
    #[error(
        "exists already; choose another --out, go on with --resume, or replace it with --force"
    )]
    Exists,
    /// A folder to write that is there already.
    #[error("exists already and is not empty; choose another --out")]
    NotEmpty,
    /// A folder that another process writes.
    #[error("{holder} is writing here; wait until it is done, or stop it")]
    InUse { holder: String },
    /// A link, or what is neither a file nor a folder, where molora writes.
    #[error("is a link, or neither a file nor a folder, and is not followed")]
    NotPlain,
    /// A change of a run that a kill cut short.
    #[error("{what} was cut short; molora recover {} finishes it", run.display())]
    Pending { what: String, run: PathBuf },
    /// A change of a run that molora did not write.
    #[error(
        "`{name}` is not what a change of experts has; remove .swap if you know where it is from"
    )]
    ForeignChange { name: String },
    /// A name in a run that would be that of a folder.
    #[error("{what} `{name}` cannot be that of a folder, expected one without slashes")]
    Name { what: &'static str, name: String },
    /// What is asked for lies in the folder that it is to replace.
    #[error("lies in {}, which --force would remove; choose another --out", out.display())]
    Inside { out: PathBuf },
    /// A folder to replace that the user is in.
    #[error(
        "is the folder that you are in, which --force cannot replace: call molora from elsewhere"
    )]
    Here,
    /// Files that have changed since the training.
    #[error("{} changed since the run began: {advice}", files.join(", "))]
    Changed {
        files: Vec<String>,
        advice: &'static str,
    },
    /// Files that changed while they were read.
    #[error("{} changed while the run began: train it again", files.join(", "))]
    Moving {
        /// The files, in words.
        files: Vec<String>,
    },
    /// A folder to replace that is no run.
    #[error("holds files but no run.toml: --force replaces runs only")]
    NoRunToReplace,
    /// A folder to read that is no run.
    #[error("holds no run.toml: not a run folder")]
    NoRun,
    /// A run of a later version.
    #[error(
        "format is {found}, but this molora knows up to {known}: a newer molora wrote the run; use \
         that one"
    )]
    NewerFormat { found: u32, known: u32 },
    /// JSON that cannot be read.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A name of a device in a file.
    #[error("{0}")]
    Device(String),
    /// An optimizer's state that cannot be kept or read.
    #[error("{0}")]
    Optimizer(String),
    /// A run that has come to its end.
    #[error("the run is finished; see its report.html")]
    Finished,
    /// Weights to begin with for experts that train alone.
    #[error("cannot be begun with: stage {stage} trains experts one by one, each anew")]
    InitOfExperts { stage: String },
    /// A LoRA to begin a mixture with.
    #[error(
        "is one LoRA, and recipe {recipe} has several experts or a router: begin recipe lora with it"
    )]
    InitOfMixture { recipe: String },
    /// A folder without an adapter.
    #[error("holds neither a run nor an adapter_config.json")]
    NoAdapter,
    /// A run of another method than the recipe.
    #[error("its adapter is another one than the recipe's, in {keys}: set these as they are there")]
    OtherAdapter { keys: String },
    /// Tasks that parts of an adapter belong to.
    #[error("parts of its adapter belong to its tasks, {found}; expected {expected}")]
    OtherTasks { found: String, expected: String },
    /// Labels that a head was not trained with.
    #[error("the labels of task {task} are others there")]
    OtherLabelsOf { task: String },
    /// Steps for a run that has not come to its end.
    #[error("the run is not finished, it has {found} steps before it: go on without --steps first")]
    StepsOfUnfinished { found: usize },
    /// A run that cannot be continued after its end.
    #[error("{}", match is_joint {
        true => "the state at its end is not there: an earlier molora trained it, or its experts were changed since",
        false => "it ends with experts that train one by one; --from-stage begins a stage again",
    })]
    NoEnd { is_joint: bool },
    /// No more steps than there are.
    #[error("has {found} steps, and is to have {steps} in all: expected more")]
    FewerSteps { steps: usize, found: usize },
    /// A run that has not come to its end.
    #[error("the run is not finished; continue it with molora train --resume")]
    NotFinished,
    /// A run of which nothing was measured.
    #[error("holds no eval.json: the run was not scored, so there is nothing to report")]
    NotScored,
    /// A file to write that is there already and is something else.
    #[error("is there already and is no page of molora; move it away, or write elsewhere")]
    NoPage,
    /// A page in the place of a run's file.
    #[error("is a file of that run; choose another --output")]
    OfRun,
    /// A page to write where no folder is.
    #[error("lies in no folder that is there; choose another --output")]
    NoFolder,
    /// A checkpoint whose numbers cannot be true of the run.
    #[error("state.json: {0}: the checkpoint is damaged or of other stages")]
    State(String),
    /// A file that is not the one that was written.
    #[error("has SHA-256 {found}, expected {expected}: the file is damaged")]
    OtherHash { found: String, expected: String },
    /// A stage to begin again that is a transform.
    #[error("stage {stage} trains nothing: name the one after it")]
    TrainsNothing { stage: String },
    /// A stage to begin again of a run that has grown since.
    #[error(
        "experts were added since stage {stage}: take them out with molora remove-expert, or train \
         in another folder"
    )]
    HasGrown { stage: String },
    /// A stage to begin again that did not begin.
    #[error("the run did not reach stage {stage}; go on without --from-stage")]
    NotReached { stage: String },
    /// A recipe of assembled experts that is trained.
    #[error(
        "its experts are files that are given to molora assemble; run that again, with --force if \
         it was cut short"
    )]
    GivenElsewhere,
    /// Labels that have changed since the training.
    #[error(
        "the labels of task {task} are not those of {}: found {found}, expected {expected}",
        run.display()
    )]
    OtherLabels {
        task: String,
        run: PathBuf,
        found: String,
        expected: String,
    },
    /// A task that the run does not have.
    #[error("has no task `{task}`; there are: {known}")]
    NoTask { task: String, known: String },
    /// Several tasks, of which one has to be named.
    #[error("it has several tasks, name one: {known}")]
    WhichTask { known: String },
    /// Answers that are to be written by a run that writes none.
    #[error("data.writing.max_new_tokens is 0: the run writes no answers; molora generate does")]
    WritesNoAnswers,
    /// A file that would be written over.
    #[error("it is there already; replace it with --force")]
    FileThere,
    /// A line among answers that is none of their records.
    #[error("line {line}: {problem}; remove the file to begin again")]
    OtherAnswer { line: usize, problem: String },
    /// A task that is requested as unseen.
    #[error("task {task} is one that the run was trained on: it is not unseen")]
    NotUnseen { task: String },
    /// A folder whose tasks were all trained on.
    #[error(
        "the run {} was trained on all tasks here, and none is left unseen; give another --data",
        run.display()
    )]
    NoneUnseen { run: PathBuf },
    /// Tasks without training records.
    #[error("its tasks have no training records to calibrate on")]
    NoTrainingRecords,
    /// A number that has to be positive.
    #[error("{option} is 0, expected at least 1")]
    Zero { option: &'static str },

    /// A limit of memory below what one row takes.
    #[error(
        "{} are too little for {what}: {} with one row at once; these take less: {advice}",
        mebibytes(Some(*limit)), mebibytes(Some(*peak))
    )]
    Memory {
        what: String,
        peak: u64,
        limit: u64,
        advice: String,
    },
    /// A system that does not report how much memory a process has taken.
    #[error(
        "this system does not tell the peak memory of a process: set stages.N.micro_batch_size"
    )]
    PeakUnknown,
    /// A device whose memory is not measured.
    #[error("the memory of device {device} is not measured: set stages.N.micro_batch_size")]
    MemoryOfDevice { device: String },
    /// A number of epochs that is none.
    #[error("found {found}, expected a finite number above 0")]
    Epochs { found: f64 },
    /// More epochs than there can be steps.
    #[error("found {found:?}, expected at most {most} with so many records: {steps} steps")]
    ManyEpochs { found: f64, most: f64, steps: u64 },

    /// An adapter without the name of its base model.
    #[error("its adapter_config.json names no base model: give it with --model")]
    NamesNoBase,
    /// An adapter whose base model is not there.
    #[error(
        "the base model that its adapter_config.json names: {problem}; give another with --model"
    )]
    BaseOfAdapter { problem: String },
    /// A name that is no base model.
    #[error("{problem}; a model is a folder, bundled:NAME, or org/name on the Hub")]
    NoModelFolder { problem: String },
    /// Bundled files that are not there.
    #[error("no datasets folder here, above or in MOLORA_DATASETS; name a folder instead")]
    NoDatasets,
    /// A bundled model that is neither here nor to be had.
    #[error(
        "is not beside this program, and the Hub does not give it: {problem}; run this once with a \
         network, or give the folder of a model with --model"
    )]
    NoBundledModel { problem: String },
    /// No place to unpack what the program has in itself.
    #[error(
        "is a part of the program, but there is no cache to unpack it to: set HOME or XDG_CACHE_HOME"
    )]
    NoCache,
    /// End tokens that are no numbers.
    #[error("eos_token_id is {found}, expected a number or a list of them")]
    EndTokens { found: String },
    /// A tokenizer with more token types than the model.
    #[error(
        "gives token type {found} to texts of task {task}, but the model's type_vocab_size is {limit}"
    )]
    TokenType {
        found: u32,
        task: String,
        limit: usize,
    },
    /// Tasks that an encoder was not trained on.
    #[error(
        "the run's model is an encoder, which has no head for other tasks than its own; give --unseen \
         to measure it with a linear probe"
    )]
    NoHeads,
    /// A task has no record in the split that is to be scored.
    #[error("task {task} has no record in the {split} split, or none in memory (data.streaming)")]
    NothingToScore {
        /// The task.
        task: String,
        /// Name of the split.
        split: &'static str,
    },
    /// A model that writes, measured by a probe.
    #[error(
        "the model writes its answers and needs no probe: molora eval RUN --data DIR --tasks NAMES \
         scores a run of it on other tasks than its own; --unseen is for encoders"
    )]
    NeedsNoProbe,
    /// An encoder that is scored without any training.
    #[error(
        "an encoder has no heads before it is trained; expected a decoder, an encoder-decoder or a run \
         folder"
    )]
    UntrainedEncoder,
    /// An encoder that is assembled without data.
    #[error("answers through heads of tasks: give --data with a task for each expert")]
    NeedsData,
    /// An encoder asked to generate.
    #[error("is an encoder, which writes no text: expected a decoder or an encoder-decoder")]
    WritesNoText,
    /// A chat with a model that has no template.
    #[error("has no chat template in tokenizer_config.json or chat_template.jinja")]
    NoChatTemplate,
    /// Prompts that need a template.
    #[error("data.writing.prompt is chat, but the model has no chat template")]
    PromptNeedsTemplate,
    /// A budget that no path keeps to, or that is no cost.
    #[error("--budget is {budget}, expected a number from {least} to 1")]
    Budget { budget: f64, least: f64 },
    /// A search for the best choice of experts where there is none.
    #[error("the run {0}")]
    NoOracle(&'static str),

    /// A query for a method that compares none.
    #[error("a query is compared with instructions, and the recipe has no [instructions]")]
    NoInstructions,
    /// Instructions of other experts.
    #[error("experts are {found}, expected {expected}")]
    OtherExperts { found: String, expected: String },
    /// Clusters that the routers do not know.
    #[error("has {found} centroids, expected from 1 to {expected}, the clusters of the routers")]
    OtherClusters { found: usize, expected: usize },
    /// Centroids of different lengths.
    #[error("a centroid has {found} numbers, expected {expected}")]
    CentroidLength { found: usize, expected: usize },
    /// Vectors of different lengths.
    #[error("the vector of {expert} has {found} numbers, expected {expected}")]
    VectorLength {
        expert: String,
        found: usize,
        expected: usize,
    },

    /// An expert of another base model.
    #[error(
        "base_model_name_or_path is {found}, expected {expected}: the expert belongs to another base \
         model"
    )]
    OtherBase { found: String, expected: String },
    /// An expert with another rank or scaling than those beside it.
    #[error("{key} is {found}, expected {expected} as of the experts beside it")]
    OtherNumber {
        key: &'static str,
        found: f64,
        expected: f64,
    },
    /// An expert at other sites than those beside it.
    #[error("target_modules are sites {found}, expected {expected}")]
    OtherSites { found: String, expected: String },
    /// An expert that differs from the others at a site.
    #[error("{site}: {source}")]
    Unlike { site: String, source: AdapterError },
    /// An expert that is not there, by name or number.
    #[error("has no expert `{name}`; {known} from 0 to {last}")]
    NoExpert {
        name: String,
        known: String,
        last: usize,
    },
    /// An expert that is to answer alone, where nothing chooses experts by the whole.
    #[error("no expert can answer alone: {why}")]
    NoExpertAlone { why: &'static str },
    /// A task or an expert of what has none.
    #[error("is no run, and has neither tasks nor experts to choose from")]
    NothingToChoose,
    /// A model that writes, but not for many at once.
    #[error("cannot be served: {why}")]
    NotServed { why: &'static str },

    /// A site of which nothing can be fitted.
    #[error("what {site} reads or adds is not finite: its weights are broken or far too large")]
    SiteNotFinite { site: String },
    /// Experts that no LoRA of a layer can be fitted to.
    #[error("{why}")]
    NotByLayer { why: String },
    /// An adapter that changes more than a distilled LoRA can.
    #[error("{what}: a distilled LoRA would leave that out; molora merge writes a whole model")]
    NotDistilled { what: String },
    /// An adapter of an encoder without the heads of its tasks.
    #[error(
        "has no {file} with the heads of its tasks, which molora export writes beside an encoder's adapter"
    )]
    NoHeadsBeside { file: &'static str },
    /// A mixture that no single LoRA equals.
    #[error("{why}; {advice}")]
    NoSingleLora { why: String, advice: String },
    /// An adapter of one LoRA where a mixture is expected.
    #[error(
        "is a LoRA, which is no mixture: molora assemble --base MODEL --expert NAME=DIR --router uniform makes \
         a run of LoRAs"
    )]
    ImportsLora,
    /// Folders of LoRAs for an adapter that has none, or has its own.
    #[error("has experts of its own: --expert names the LoRAs of an X-LoRA alone")]
    HasOwnExperts,
    /// Another number of something than an adapter has.
    #[error("has {expected} {what}, and {found} are given")]
    OtherCount {
        what: &'static str,
        found: usize,
        expected: usize,
    },
    /// A run of a method of which PEFT computes something else.
    #[error("no adapter of PEFT computes what this run does: {why}")]
    NotOfPeft { why: String },
    /// A run of a method that the Python of an export does not compute.
    #[error("the Python of --format transformers does not compute this run: {why}")]
    NotInPython { why: String },
    /// A given expert without the gate that the routers go by.
    #[error(
        "has no {file}: phatgoose routes by gates that were trained with the experts, as molora's own \
         phatgoose and glider runs have; --router arrow needs none"
    )]
    NoGate { file: &'static str },
    /// Given experts of which some have a gate.
    #[error("has no {file}, but other experts have: expected all or none")]
    SomeGates { file: &'static str },
    /// A given expert with magnitudes.
    #[error(
        "is a DoRA adapter: its magnitudes belong to one expert alone and cannot be mixed; expected a \
         LoRA"
    )]
    Dora,
    /// A given expert that changes the model in a way that cannot be mixed.
    #[error("{0}")]
    NotMixable(String),
    /// A given expert that holds parameters whole, which have no weighted sum.
    #[error("holds {path} whole, which has no weighted sum: expected a LoRA alone")]
    HoldsWhole { path: String },
    /// A given expert whose base model is unknown.
    #[error("does not say of which base model it is: give that with --base")]
    NoBaseNamed,
    /// An expert that is given twice.
    #[error("is given twice: each expert once")]
    GivenTwice,
    /// A given expert that is neither a run nor an adapter.
    #[error(
        "is no run and has no adapter_config.json: expected a run of one LoRA, RUN/experts/NAME, or a \
         folder that PEFT wrote"
    )]
    NoExpertHere,
    /// A head of another number of classes than the task has labels.
    #[error("task {task} has {found} labels, but its head was trained for {expected}")]
    OtherHead {
        task: String,
        found: usize,
        expected: usize,
    },
    /// Tasks without a head.
    #[error("no expert brings a head for task {task}; there are heads for: {known}")]
    NoHeadFor { task: String, known: String },
    /// A folder without a manifest.
    #[error(
        "has no manifest.json: an earlier molora wrote it, or a command that did not get to its end"
    )]
    NoManifest,
    /// No folder to verify.
    #[error("no such folder, expected a finished run or an export")]
    NoManifestHere,
    /// Tokens of a manifest that the model cannot read.
    #[error("the manifest's tokens are none that this model reads")]
    ForeignProbe,
    /// A model that computes no numbers.
    #[error("{output} has values that are no finite numbers")]
    ProbeNotFinite { output: String },
    /// Given experts of different base models.
    #[error(
        "belongs to the base model {found}, but expert {first} to {expected}: expected one base for \
         all"
    )]
    DifferentBases {
        found: String,
        first: String,
        expected: String,
    },
    /// What is wrong with adding or removing an expert.
    #[error(transparent)]
    Growth(#[from] GrowthProblem),
}
