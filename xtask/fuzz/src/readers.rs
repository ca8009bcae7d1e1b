//! The readers and the files that they read.

use std::fmt::Display;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use molora_models::Backbone;
use molora_models::peft::PeftAdapter;
use molora_testkit::device;
use molora_train::data::{ChatTemplate, Message, TextTokenizer, load_tasks};
use molora_train::hub::{HubConfig, HubError, fetch};
use molora_train::run::{ResumeOptions, evaluate_run, resume};
use molora_train::store::{FinishedRun, read_config, recover};
use molora_train::{Recipe, TrainError};

use crate::World;

/// A reader and the file that is changed for it.
#[derive(Debug)]
pub struct Reader {
    /// Its name, that of its fuzz target and of its folder of seeds.
    pub name: &'static str,
    /// Where the bytes lie in the world; an existing file there is the first seed.
    pub place: &'static str,
    /// Reads them in the way of the program.
    pub read: fn(&World) -> Result<(), String>,
}

/// All readers.
pub static READERS: [Reader; 27] = [
    reader("safetensors", "llama/model.safetensors", |world| {
        model(&world.path("llama"))
    }),
    reader("index", "sharded/model.safetensors.index.json", |world| {
        model(&world.path("sharded"))
    }),
    reader("config_encoder", "model/config.json", |world| {
        model(&world.path("model"))
    }),
    reader("config_decoder", "llama/config.json", |world| {
        model(&world.path("llama"))
    }),
    reader("tokenizer", "model/tokenizer.json", tokenizer),
    reader("tokenizer_config", "model/tokenizer_config.json", template),
    reader("special_tokens", "model/special_tokens_map.json", template),
    reader("template", "model/chat_template.jinja", template),
    reader("json_lines", "task.jsonl", |world| {
        tasks(&world.path("task.jsonl"))
    }),
    reader("json", "task.json", |world| tasks(&world.path("task.json"))),
    reader("csv", "task.csv", |world| tasks(&world.path("task.csv"))),
    reader("parquet", "task.parquet", |world| {
        tasks(&world.path("task.parquet"))
    }),
    reader("task_description", "data/weather/task.json", |world| {
        tasks(&world.path("data"))
    }),
    reader("recipe", "recipe.toml", recipe),
    reader("run", "finished/run.toml", |world| {
        evaluate(&world.path("finished"))
    }),
    reader(
        "adapter_weights",
        "finished/adapter_model.safetensors",
        |world| evaluate(&world.path("finished")),
    ),
    reader("heads", "finished/heads.safetensors", |world| {
        evaluate(&world.path("finished"))
    }),
    reader("summary", "finished/summary.json", report),
    reader("steps", "finished/steps.jsonl", report),
    reader("scores", "finished/eval.json", report),
    reader("base_scores", "finished/base.json", report),
    reader(
        "state",
        "stopped/checkpoints/step-00000006/state.json",
        go_on,
    ),
    reader(
        "optimizer",
        "stopped/checkpoints/step-00000006/optimizer.bpk",
        go_on,
    ),
    reader("journal", "changed/.swap/drop", |world| {
        said(recover(&world.copy_of("changed")))
    }),
    reader("peft_config", "adapter/adapter_config.json", peft),
    reader("peft_weights", "adapter/adapter_model.safetensors", peft),
    reader("hub_listing", "listing.json", listing),
];

const fn reader(
    name: &'static str,
    place: &'static str,
    read: fn(&World) -> Result<(), String>,
) -> Reader {
    Reader { name, place, read }
}

/// What came of reading, in words.
fn said<T>(result: Result<T, impl Display>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

fn model(folder: &Path) -> Result<(), String> {
    said(Backbone::from_folder(folder, &device()))
}

fn tokenizer(world: &World) -> Result<(), String> {
    let folder = world.path("model");
    let mut tokenizer = TextTokenizer::from_folder(&folder).map_err(|error| error.to_string())?;
    said(tokenizer.check_vocabulary(64))?;
    let ids = tokenizer.encode_whole("sun and rain, [MASK] \u{1f980}\0 it is.", true);
    said(ids.and_then(|ids| tokenizer.decode(&ids)))
}

fn template(world: &World) -> Result<(), String> {
    let found = ChatTemplate::from_folder(&world.path("model"));
    let Some(template) = found.map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let chat = [
        Message::system("Be short."),
        Message::user("Hi"),
        Message::assistant("Hi"),
    ];
    said(template.render(&chat, true))
}

fn tasks(path: &Path) -> Result<(), String> {
    said(load_tasks(path, None))
}

fn recipe(world: &World) -> Result<(), String> {
    let text = std::fs::read(world.path("recipe.toml")).map_err(|error| error.to_string())?;
    let text = String::from_utf8(text).map_err(|error| error.to_string())?;
    let recipe = Recipe::from_toml(&text, "recipe.toml").map_err(|error| error.to_string())?;
    said(recipe.check())?;
    said(recipe.for_tasks(&["pets".into(), "weather".into()]))?;
    let model = Backbone::from_folder(&world.path("model"), &device());
    said(recipe.fits(&model.map_err(|error| error.to_string())?))
}

fn evaluate(run: &Path) -> Result<(), String> {
    said(read_config(run))?;
    said(evaluate_run(run, None, None))
}

/// The page of a run.
fn report(world: &World) -> Result<(), String> {
    let run = FinishedRun::read(&world.path("finished")).map_err(|error| error.to_string())?;
    said(Ok::<_, String>(run.render()))
}

/// Goes on with a run for one step: all of the checkpoint is read.
fn go_on(world: &World) -> Result<(), String> {
    let run = world.copy_of("stopped");
    let stop = AtomicBool::new(true);
    match resume(&run, &ResumeOptions::default(), &stop, &mut |_| {}) {
        Err(TrainError::Interrupted { .. }) => Ok(()),
        other => said(other),
    }
}

fn peft(world: &World) -> Result<(), String> {
    let adapter = PeftAdapter::open(&world.path("adapter")).map_err(|error| error.to_string())?;
    let Backbone::Decoder(model) = Backbone::from_folder(&world.path("llama"), &device())
        .map_err(|error| error.to_string())?
    else {
        return Err("not a decoder".into());
    };
    said(adapter.resolve(&model))
}

/// Asks a hub for a model that answers the bytes as its description, and then nothing more.
fn listing(world: &World) -> Result<(), String> {
    let body = std::fs::read(world.path("listing.json")).map_err(|error| error.to_string())?;
    let hub = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let place = hub.local_addr().map_err(|error| error.to_string())?;
    let server = std::thread::spawn(move || {
        if let Ok((stream, _)) = hub.accept() {
            drop(answer(stream, &body));
        }
    });
    let cache = world.path("hub");
    drop(std::fs::remove_dir_all(&cache));
    let mut config = HubConfig::new(cache);
    config.endpoint = format!("http://{place}");
    (config.attempts, config.pause) = (1, Duration::ZERO);
    config.timeout = Duration::from_secs(2);
    let model = "org/name".parse().map_err(|_| "a name".to_owned())?;
    let found = fetch(&model, &config, &mut |_| ControlFlow::Continue(()));
    // Where the hub was never asked, it still waits.
    drop(TcpStream::connect(place));
    drop(server.join());
    match found {
        // It went on to the files, which this hub has not.
        Err(HubError::Connection { url, .. }) if url.contains("/resolve/") => Ok(()),
        other => said(other.map(|_| ())),
    }
}

fn answer(mut stream: TcpStream, body: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            count => request.extend(&piece[..count]),
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
