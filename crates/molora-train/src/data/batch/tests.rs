use super::*;
use proptest::prelude::*;

fn example(length: usize, task: usize) -> Example {
    Example {
        ids: (1..=length as u32).collect(),
        type_ids: (0..length as u32).map(|token| token % 2).collect(),
        task,
        target: Target::Class(length),
    }
}

fn batch(lengths: &[usize]) -> Batch {
    let examples: Vec<Example> = lengths
        .iter()
        .enumerate()
        .map(|(row, &length)| example(length, row % 3))
        .collect();
    Batch::from_examples(&examples.iter().collect::<Vec<_>>())
}

#[test]
fn rows_are_padded_to_the_longest() {
    let batch = batch(&[2, 3]);
    assert_eq!(batch.input_ids, [1, 2, 0, 1, 2, 3]);
    assert_eq!(batch.type_ids, [0, 1, 0, 0, 1, 0]);
    assert_eq!(batch.mask, [true, true, false, true, true, true]);
    assert_eq!((batch.num_tokens(), batch.num_padded()), (5, 6));
    assert_eq!(batch.targets, [Target::Class(2), Target::Class(3)]);
}

#[test]
fn rows_are_found_by_task() {
    let rows = batch(&[1, 1, 1, 1]).rows_by_task();
    let expected = [(0, vec![0, 3]), (1, vec![1]), (2, vec![2])];
    assert_eq!(rows.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn tensors_hold_what_the_host_holds() {
    let (batch, device) = (batch(&[2, 3]), Device::flex());
    let ids = batch.input_ids(&device);
    assert_eq!(ids.dims(), [2, 3]);
    assert_eq!(
        ids.into_data().iter::<i32>().collect::<Vec<_>>(),
        batch.input_ids
    );
    let types = batch.type_ids(&device).into_data();
    assert_eq!(types.iter::<i32>().collect::<Vec<_>>(), batch.type_ids);
    let mask = batch.mask(&device).into_data();
    assert_eq!(mask.iter::<bool>().collect::<Vec<_>>(), batch.mask);
}

fn text(length: usize, prompt: usize) -> Example {
    Example {
        target: Target::Answer((0..length).map(|place| place >= prompt).collect()),
        ..example(length, 0)
    }
}

#[test]
fn answers_are_told_from_the_token_in_front() {
    let examples = [text(4, 2), text(2, 0)];
    let batch = Batch::from_examples(&examples.iter().collect::<Vec<_>>());
    let answer = |row, place, token, weight| AnswerToken {
        row,
        place,
        token,
        weight,
    };
    let expected = [
        answer(0, 1, 3, 0.5),
        answer(0, 2, 4, 0.5),
        answer(1, 0, 2, 1.0),
    ];
    assert_eq!(batch.answers(), expected);
    let prompt = batch.prompt(&Device::flex()).unwrap().into_data();
    let expected = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
    assert_eq!(prompt.iter::<f32>().collect::<Vec<_>>(), expected);
}

#[test]
fn written_texts_are_told_token_by_token() {
    let target = |ids: &[u32]| Example {
        target: Target::Text(ids.to_vec()),
        ..example(3, 0)
    };
    let examples = [target(&[9, 5, 6]), target(&[9, 7])];
    let batch = Batch::from_examples(&examples.iter().collect::<Vec<_>>());
    let (ids, mask) = batch.target_ids(&Device::flex()).unwrap();
    let ids: Vec<i32> = ids.into_data().iter().collect();
    let mask: Vec<bool> = mask.into_data().iter().collect();
    assert_eq!(
        (ids, mask),
        (vec![9, 5, 9, 0], vec![true, true, true, false])
    );
    let tokens: Vec<_> = batch
        .answers()
        .iter()
        .map(|a| (a.row, a.place, a.token))
        .collect();
    assert_eq!(tokens, [(0, 0, 5), (0, 1, 6), (1, 0, 7)]);
}

proptest! {
    #[test]
    fn packed_rows_ask_for_the_same_tokens(
        lengths in prop::collection::vec((2_usize..20, 0_usize..20, 0_usize..3), 1..12),
        micro_rows in 1_usize..4,
    ) {
        let examples: Vec<Example> = lengths
            .iter()
            .map(|&(length, prompt, task)| Example {
                task,
                ..text(length, prompt.min(length - 1))
            })
            .collect();
        let refs: Vec<&Example> = examples.iter().collect();
        let asked = |batches: &[Batch]| {
            let of = |batch: &Batch| {
                let answers = batch.answers();
                let tokens = answers.iter().map(|a| (batch.task_ids[a.row], a.token, a.weight));
                tokens.collect::<Vec<_>>()
            };
            let mut all: Vec<_> = batches.iter().flat_map(of).collect();
            all.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
            all
        };
        let alone = asked(&[Batch::from_examples(&refs)]);
        let packed = Batch::packed(&refs, 24);
        prop_assert_eq!(packed.num_examples(), examples.len());
        prop_assert_eq!(packed.num_tokens(), examples.iter().map(|e| e.ids.len()).sum::<usize>());
        prop_assert!(packed.width <= 24);
        prop_assert_eq!(asked(std::slice::from_ref(&packed)), alone.clone());
        prop_assert_eq!(asked(&packed.split(micro_rows)), alone);
    }

    #[test]
    fn padding_keeps_every_token(lengths in prop::collection::vec(1_usize..20, 1..10)) {
        let batch = batch(&lengths);
        prop_assert_eq!(batch.num_tokens(), lengths.iter().sum::<usize>());
        prop_assert_eq!(batch.width, *lengths.iter().max().unwrap());
        for (row, &length) in lengths.iter().enumerate() {
            let mask = &batch.mask[row * batch.width..][..batch.width];
            prop_assert!(mask[..length].iter().all(|&is_token| is_token));
            prop_assert!(!mask[length..].iter().any(|&is_token| is_token));
            let ids = &batch.input_ids[row * batch.width..][..batch.width];
            prop_assert!(ids[length..].iter().all(|&id| id == PAD_ID));
        }
    }

    #[test]
    fn parts_equal_batches_of_their_rows(
        lengths in prop::collection::vec(1_usize..20, 1..10),
        micro_rows in 1_usize..6,
    ) {
        let examples: Vec<Example> = lengths.iter().map(|&length| example(length, 0)).collect();
        let examples: Vec<&Example> = examples.iter().collect();
        let parts = Batch::from_examples(&examples).split(micro_rows);
        let expected: Vec<Batch> =
            examples.chunks(micro_rows).map(Batch::from_examples).collect();
        prop_assert_eq!(parts, expected);
    }
}
