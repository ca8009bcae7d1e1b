//! What molora writes, for PEFT to load: `xtask/parity/check.py` compares.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use molora_kernels::random::{Seed, normal};
use molora_models::peft::{PeftAbout, merge_into, open_poly, write_poly};
use molora_models::{Adaptable, AdapterSpec, Decoder};
use molora_testkit::{assert_close, device};
use tempfile::TempDir;

use super::{TOLERANCE, base, copy_folder, logits, peft_folder};
use crate::peft::poly::skilled_spec;
use crate::peft::world::{File, write_file};

/// A folder with a case for PEFT: `base`, `adapter`, `case.json` and `expected.safetensors`.
struct Case {
    folder: PathBuf,
    /// Where nobody wants to see it.
    _temporary: Option<TempDir>,
    expected: File,
}

impl Case {
    fn new(name: &str) -> Self {
        let (folder, temporary) = match std::env::var_os("MOLORA_PARITY") {
            Some(root) => (Path::new(&root).join(name), None),
            None => {
                let temporary = tempfile::tempdir().expect("a folder");
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        copy_folder(&peft_folder().join("base"), &folder.join("base"));
        std::fs::create_dir_all(folder.join("adapter")).expect("writable");
        Self {
            folder,
            _temporary: temporary,
            expected: File::new(),
        }
    }

    fn adapter(&self) -> PathBuf {
        self.folder.join("adapter")
    }

    fn expect(&mut self, name: &str, logits: &Tensor<3>) {
        let values = logits.clone().into_data().iter::<f32>().collect();
        let value = (logits.dims().to_vec(), values);
        self.expected.insert(name.into(), value);
    }

    /// Writes what the check reads beside the adapter; `more` are numbers of the method.
    fn close(&self, method: &str, more: &str) {
        let ids = super::IDS;
        let text = format!(
            "{{\"kind\": \"causal\", \"method\": \"{method}\", \"input_ids\": {ids:?}{more}}}\n"
        );
        std::fs::write(self.folder.join("case.json"), text).expect("writable");
        write_file(&self.folder.join("expected.safetensors"), &self.expected);
    }
}

fn about() -> PeftAbout {
    PeftAbout {
        name: "default".into(),
        base_model: "base".into(),
        task_type: Some("CAUSAL_LM".into()),
    }
}

/// A base with adapters whose every tensor has values at which it counts.
fn adapted(spec: &AdapterSpec, num_tasks: usize) -> Decoder {
    let (mut model, device) = (base(), device());
    model
        .attach(spec, num_tasks, Seed::new(3), &device)
        .expect("a valid specification");
    let mut draws = 0;
    let fill = model.visit_tensors(|path, mut tensor| {
        draws += 1;
        let count = tensor.shape().iter().product();
        let seed = Seed::new(7).child(path).index(draws);
        let values: Tensor<1> = normal([count], 0.4, seed, &device);
        tensor.set(&values.into_data().iter::<f32>().collect::<Vec<f32>>());
        Ok::<(), std::convert::Infallible>(())
    });
    fill.expect("cannot fail");
    model
}

#[test]
fn poly() {
    for splits in [1, 2] {
        let model = adapted(&skilled_spec(splits), 2);
        let mut case = Case::new(&format!("poly-{splits}"));
        write_poly(&case.adapter(), &model, &about()).expect("writable");
        let read = open_poly(&case.adapter(), &model).expect("its own files");
        for (task, adapter) in read.iter().enumerate() {
            let (name, found) = (format!("task {task}"), logits(&model, Some((task, 2))));
            let mut merged = base();
            merge_into(&mut merged, adapter);
            assert_close(logits(&merged, None), found.clone(), TOLERANCE, &name);
            case.expect(&name, &found);
        }
        case.close("poly", "");
    }
}
