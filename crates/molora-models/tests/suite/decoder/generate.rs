//! Generation: batches, ends of rows, draws and refusals.

use burn::tensor::{Int, Tensor, TensorData};
use molora_kernels::random::Seed;
use molora_models::{
    Decoder, DecoderInput, Finish, GenerateError, GenerateOptions, Generated, Sampling,
};
use molora_testkit::device;

use super::world::{VOCAB, context, gpt2, llama, model, sequence};

fn run(
    model: &Decoder,
    prompts: &[Vec<usize>],
    options: &GenerateOptions,
) -> Result<Vec<Generated>, GenerateError> {
    let input = DecoderInput::from_sequences(prompts, &device());
    model.generate(&input, options, &context(&input))
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        ..Default::default()
    }
}

/// The likeliest next tokens without a cache.
fn slowly(model: &Decoder, prompt: &[usize], count: usize) -> Vec<usize> {
    let mut all = prompt.to_vec();
    for _ in 0..count {
        let input = DecoderInput::from_sequences(&[all.clone()], &device());
        let logits = super::world::logits(model, &input);
        let last = logits.narrow(1, all.len() - 1, 1).argmax(2);
        all.push(last.into_data().iter::<i64>().next().expect("a number") as usize);
    }
    all.split_off(prompt.len())
}

#[test]
fn rows_of_a_batch_are_what_they_are_alone() {
    for config in [llama(), gpt2()] {
        let model = model(&config, 1);
        let prompts = [sequence(3, 1), sequence(7, 2), sequence(1, 3)];
        let batch = run(&model, &prompts, &options(8)).expect("good prompts");
        for (prompt, generated) in prompts.iter().zip(&batch) {
            assert_eq!(generated.tokens, slowly(&model, prompt, 8));
            assert_eq!(generated.finish, Finish::MaxNewTokens);
        }
        // The same prompts padded on the right, with a number that is no token.
        let mut ids = Vec::new();
        let mut mask = Vec::new();
        for prompt in &prompts {
            ids.extend((0..7).map(|i| prompt.get(i).map_or(-100, |&token| token as i64)));
            mask.extend((0..7).map(|i| i < prompt.len()));
        }
        let input = DecoderInput {
            ids: Tensor::from_data(TensorData::new(ids, [3, 7]), &device()),
            mask: Tensor::from_data(TensorData::new(mask, [3, 7]), &device()),
            segments: None,
        };
        let right = model.generate(&input, &options(8), &context(&input));
        assert_eq!(right, Ok(batch));
    }
}

#[test]
fn a_row_ends_at_a_stop_token_while_others_go_on() {
    let model = model(&llama(), 2);
    let prompts = [sequence(4, 1), sequence(6, 5)];
    let free = run(&model, &prompts, &options(10)).expect("good prompts");
    let stop = free[0].tokens[2];
    let stopped = GenerateOptions {
        stop_tokens: vec![stop],
        ..options(10)
    };
    let rows = run(&model, &prompts, &stopped).expect("good prompts");
    for (row, free) in rows.iter().zip(&free) {
        let end = free.tokens.iter().position(|&token| token == stop);
        assert_eq!(row.tokens, free.tokens[..end.unwrap_or(10)]);
        let by_stop = end.map_or(Finish::MaxNewTokens, |_| Finish::StopToken);
        assert_eq!(row.finish, by_stop);
    }
    assert!(rows[0].tokens.len() <= 2);
    assert_ne!(rows[0].tokens.len(), rows[1].tokens.len(), "ends differ");
    let none = run(&model, &prompts, &options(0)).expect("good prompts");
    assert!(none.iter().all(|row| row.tokens.is_empty()));
}

#[test]
fn the_context_ends_a_row() {
    for config in [llama(), gpt2()] {
        let model = model(&config, 3);
        let rows = run(&model, &[sequence(22, 1), sequence(3, 2)], &options(9));
        let rows = rows.expect("good prompts");
        // The token after the last position can be told, but not followed.
        let ends: Vec<_> = rows
            .iter()
            .map(|row| (row.tokens.len(), row.finish))
            .collect();
        assert_eq!(ends, [(3, Finish::ContextEnd), (9, Finish::MaxNewTokens)]);
    }
}

#[test]
fn draws_depend_on_the_seed_alone() {
    let model = model(&llama(), 4);
    let prompts = [sequence(4, 1), sequence(2, 2)];
    let draw = |seed, temperature| {
        let sampling = Sampling {
            temperature,
            top_k: Some(8),
            top_p: Some(0.9),
            ..Default::default()
        };
        let options = GenerateOptions {
            sampling: Some(sampling),
            seed: Seed::new(seed),
            ..options(12)
        };
        run(&model, &prompts, &options).expect("good prompts")
    };
    assert_eq!(draw(1, 1.0), draw(1, 1.0));
    assert_ne!(draw(1, 2.0), draw(2, 2.0));
    let greedy = run(&model, &prompts, &options(12)).expect("good prompts");
    assert_eq!(draw(3, 1e-4), greedy);
}

#[test]
fn bad_prompts_and_numbers_are_named() {
    let model = model(&llama(), 5);
    let text = |prompts: &[Vec<usize>]| {
        let error = run(&model, prompts, &options(2)).expect_err("a bad prompt");
        error.to_string()
    };
    assert_eq!(
        text(&[vec![1], vec![]]),
        "prompt 1 is empty, expected at least one token"
    );
    assert_eq!(
        text(&[sequence(25, 1)]),
        "prompt 0 has 25 tokens, expected at most 24, the model's context"
    );
    assert_eq!(
        text(&[vec![1, VOCAB]]),
        "prompt 0 has token 23, expected 0 to 22"
    );
    let negative = DecoderInput {
        ids: Tensor::<2, Int>::from_ints([[-1]], &device()),
        ..DecoderInput::from_sequences(&[vec![1]], &device())
    };
    let error = model.generate(&negative, &options(2), &context(&negative));
    assert!(matches!(
        error,
        Err(GenerateError::OutsideVocabulary { token: -1, .. })
    ));
    let sampling = Some(Sampling {
        temperature: 0.0,
        ..Default::default()
    });
    let cold = GenerateOptions {
        sampling,
        ..options(1)
    };
    let error = run(&model, &[vec![1]], &cold).expect_err("no temperature");
    assert_eq!(error.to_string(), "temperature is 0, expected above 0");
}
