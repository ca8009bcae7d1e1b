"""Asks `molora serve` what OpenAI's client and EleutherAI's lm-eval ask.

Called by `cargo xtask parity serve`: `serve.py make FOLDER` writes a tiny decoder and tasks, and
`serve.py check FOLDER URL KEY` talks to the server; `eval-*.json` in the folder are the scores of
`molora eval` by the names of the models.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# As molora writes a record for a model without a chat template.
PROMPT = "{{instruction}}\n\n{{input}}{% if input_b %}\n{{input_b}}{% endif %}\nAnswer:"
RECORDS = {"train": 48, "validation": 12, "test": 60}
# The tasks, and what is asked.
INSTRUCTIONS = {"pets": "Which animal is it?", "sky": "How is the weather?", "vowels": "Which vowel is it?"}
# The answer of `vowels` is the last of these in what a model writes, within so many tokens: even a model that has learned
# little has some right.
VOWELS = "[aeiou]"
WRITTEN = 32


def make(folder):
    """A tiny decoder of random weights whose tokens are bytes, and two tasks."""
    tokens = write_tokenizer(folder / "base")
    write_model(folder / "base", tokens)
    write_tasks(folder / "tasks")


def write_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "</s>", *letters]
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": template,
    }
    write(folder / "tokenizer_config.json", config)
    return len(names)


def write_model(folder, tokens, width=64, inner=96, layers=2, heads=4):
    import numpy
    from safetensors.numpy import save_file

    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    write(folder / "config.json", config)
    generator = numpy.random.default_rng(0)

    def matrix(*shape):
        return generator.normal(0.0, 0.2, shape).astype(numpy.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(tokens, width),
        "model.norm.weight": numpy.ones(width, numpy.float32),
        "lm_head.weight": matrix(tokens, width),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in ["input_layernorm", "post_attention_layernorm"]:
            tensors[f"{at}{name}.weight"] = numpy.ones(width, numpy.float32)
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"]:
            tensors[f"{at}self_attn.{name}.weight"] = matrix(width, width)
        for name in ["gate_proj", "up_proj"]:
            tensors[f"{at}mlp.{name}.weight"] = matrix(inner, width)
        tensors[f"{at}mlp.down_proj.weight"] = matrix(width, inner)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_tasks(folder):
    """`pets` with labels, `sky` whose choices are those of each record, and `vowels`, whose answers are written."""
    draw = random.Random(0)
    fillers = ["small", "old", "quick", "here", "now", "very"]

    def text(word):
        words = draw.choices(fillers, k=draw.randint(2, 5))
        words.insert(draw.randint(0, len(words)), word)
        return " ".join(words)

    def pets(index):
        label = index % 2
        return text(["purrs", "barks"][label]), None, ["cat", "dog"], label

    def sky(index):
        choices = ["warm", "wet", "quite white"]
        answer = index % 3
        word = ["sun", "rain", "snow"][answer]
        first = draw.randrange(3)
        turned = choices[first:] + choices[:first]
        return text(word), text("day"), turned, turned.index(choices[answer])

    def vowels(index):
        letter = "aeiou"[index % 5]
        return text(letter), None, [f"it is {letter}"], 0

    kinds = {"pets": (pets, "classification"), "sky": (sky, "multiple_choice"), "vowels": (vowels, "generation")}
    more = {
        "pets": {"labels": ["cat", "dog"], "metric": "accuracy"},
        "sky": {"labels": None, "metric": "accuracy"},
        "vowels": {"labels": None, "metric": "exact_match", "answer": {"regex": {"pattern": VOWELS, "take": "last"}}},
    }
    for name, (record, kind) in kinds.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        common = {"task": name, "type": kind, "instruction": INSTRUCTIONS[name]}
        write(folder / name / "task.json", {**common, **more[name]})
        for split, count in RECORDS.items():
            lines = []
            for index in range(count):
                first, second, choices, label = record(index)
                line = {
                    "id": f"{name}-{split}-{index}",
                    **common,
                    "input": first,
                    "input_b": second,
                    "choices": choices if kind == "multiple_choice" else None,
                    "label": None if kind == "generation" else label,
                    "output": choices[label],
                }
                lines.append(json.dumps(line) + "\n")
            (folder / name / f"{split}.jsonl").write_text("".join(lines))


def write(path, value):
    path.write_text(json.dumps(value))


class Openai:
    """OpenAI's own client."""

    def __init__(self, url, key):
        import openai

        self.openai = openai
        self.url, self.key = url, key
        self.client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)

    def check(self):
        """What is right, part by part."""
        self.models()
        self.chat()
        self.completions()
        asyncio.run(self.together())
        self.embeddings()
        self.errors()
        parts = "models, chat, stream, completions, 16 at once, embeddings, errors"
        print(f"openai {self.openai.__version__}: {parts}")

    def models(self):
        names = [model.id for model in self.client.models.list()]
        assert {"run", "run:task=pets", "run:task=sky", "base", "encoder"} <= set(names), names
        assert self.client.models.retrieve("run:task=sky").id == "run:task=sky"

    def asked(self, **more):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Name an animal."}]},
        ]
        return {"model": "run", "messages": messages, "max_completion_tokens": 24, "temperature": 0, **more}

    def chat(self):
        whole = self.client.chat.completions.create(**self.asked(logprobs=True, top_logprobs=3))
        [choice] = whole.choices
        assert choice.finish_reason in ("stop", "length"), choice
        log = choice.logprobs.content
        assert 1 <= len(log) <= 24 and all(len(token.top_logprobs) == 3 for token in log)
        assert all(token.logprob <= token.top_logprobs[0].logprob + 1e-6 for token in log)
        usage = whole.usage
        assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
        options = {"include_usage": True}
        stream = self.client.chat.completions.create(**self.asked(stream=True, stream_options=options))
        chunks = list(stream)
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == choice.message.content, (text, choice.message.content)
        assert chunks[-1].usage == usage, (chunks[-1].usage, usage)
        # The client's own collector of a stream, which takes no answer that the limit cut.
        stop = middle(text)
        with self.client.chat.completions.stream(**self.asked(stop=stop)) as events:
            final = events.get_final_completion()
        assert final.choices[0].message.content == text[: text.index(stop)]
        drawn = self.asked(temperature=2, seed=3, n=3)
        answers = [self.client.chat.completions.create(**drawn) for _ in range(2)]
        texts = [[choice.message.content for choice in answer.choices] for answer in answers]
        assert texts[0] == texts[1] and len(set(texts[0])) > 1, texts

    def completions(self):
        tokens = [[40, 41, 42, 43], [50, 51, 52]]
        ask = {"model": "run", "max_tokens": 6, "temperature": 0, "logprobs": 2}
        answer = self.client.completions.create(prompt=tokens, **ask)
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.usage.prompt_tokens == 7
        echoed = self.client.completions.create(prompt=tokens, echo=True, **{**ask, "max_tokens": 0})
        for choice, prompt in zip(echoed.choices, tokens, strict=True):
            log = choice.logprobs
            assert len(log.tokens) == len(log.token_logprobs) == len(log.text_offset) == len(prompt)
            assert log.token_logprobs[0] is None and all(value < 0 for value in log.token_logprobs[1:])
            assert choice.text == "".join(log.tokens)
        streamed = ""
        for chunk in self.client.completions.create(prompt=tokens[0], stream=True, **ask):
            streamed += chunk.choices[0].text
        assert streamed == answer.choices[0].text
        stop = middle(streamed)
        stopped = self.client.completions.create(prompt=tokens[0], stop=stop, **ask)
        assert stopped.choices[0].text == streamed[: streamed.index(stop)]

    async def together(self):
        """Answers beside each other are those of one alone."""
        client = self.openai.AsyncOpenAI(base_url=self.url, api_key=self.key, max_retries=0)
        models = ["run", "run:task=pets", "run:task=sky", "base"] * 4
        asked = [self.asked(model=model) for model in models]
        answers = await asyncio.gather(*(client.chat.completions.create(**ask) for ask in asked))
        for ask, answer in zip(asked[:4], answers[:4], strict=True):
            alone = self.client.chat.completions.create(**ask)
            assert alone.choices == answer.choices, (alone.choices, answer.choices)
        await client.close()

    def embeddings(self):
        for model in ["encoder", "classes"]:
            # The client asks for base64 unless it is told otherwise.
            coded = self.client.embeddings.create(model=model, input=["a cat", "a dog"])
            plain = self.client.embeddings.create(
                model=model, input=["a cat", "a dog"], encoding_format="float"
            )
            for one, other in zip(coded.data, plain.data, strict=True):
                assert max(abs(a - b) for a, b in zip(one.embedding, other.embedding, strict=True)) < 1e-6
            assert coded.data[0].embedding != coded.data[1].embedding
            assert coded.usage.total_tokens > 4

    def errors(self):
        openai, chat = self.openai, self.client.chat.completions
        expect(openai.NotFoundError, "model_not_found", lambda: chat.create(**self.asked(model="nobody")))
        expect(openai.NotFoundError, None, lambda: self.client.models.retrieve("nobody"))
        expect(openai.NotFoundError, None, lambda: self.client.responses.create(model="run", input="x"))
        for more in [{"n": 0}, {"temperature": -1}, {"messages": []}, {"extra_body": {"guided_json": {}}}]:
            expect(openai.BadRequestError, None, lambda more=more: chat.create(**self.asked(**more)))
        long = lambda: self.client.completions.create(model="run", prompt=[40] * 5000)
        expect(openai.BadRequestError, "context_length_exceeded", long)
        stranger = openai.OpenAI(base_url=self.url, api_key="other", max_retries=0)
        expect(openai.AuthenticationError, "invalid_api_key", stranger.models.list)
        # As many texts as there is room for, and one more.
        full = {"model": "base", "prompt": [2, 3], "n": 20, "max_tokens": 1500, "seed": 1}
        with self.client.completions.create(stream=True, **full) as stream:
            next(iter(stream))
            one = lambda: self.client.completions.create(model="base", prompt=[2, 3])
            expect(openai.RateLimitError, "queue_full", one)
        # A client that is patient gets its answer.
        patient = self.client.with_options(max_retries=5)
        assert patient.completions.create(model="base", prompt=[2, 3]).usage.prompt_tokens == 2


def middle(text):
    """Two letters of a text."""
    assert len(text) > 1, text
    return text[len(text) // 2 - 1 :][:2]


def expect(kind, code, ask):
    """An error of the client's own class, with what the server says."""
    try:
        ask()
    except kind as error:
        assert code is None or error.code == code, (error.code, code)
        assert error.body["message"], error
        return
    raise AssertionError(f"{kind.__name__} was expected")


def check_lm_eval(folder, url):
    """lm-eval finds as many right answers as `molora eval`, of the same records."""
    import lm_eval

    for meta in sorted((folder / "tasks").glob("*/task.json")):
        write_task(folder / "lm_eval", json.loads(meta.read_text()), meta.parent / "test.jsonl")
    for file in sorted(folder.glob("eval-*.json")):
        name = file.stem.removeprefix("eval-")
        for task, expected in json.loads(file.read_text())["tasks"].items():
            model = f"{name}:task={task}" if name == "run" else name
            count, found = evaluate(folder, url, model, task)
            assert count == expected["n"], (count, expected["n"])
            if "also" in expected and "accuracy_per_character" in expected["also"]:
                compared = {"acc": expected["accuracy"], "acc_norm": expected["also"]["accuracy_per_character"]}
            else:
                compared = {"exact_match,last": expected["value"]}
            for metric, value in compared.items():
                right = [round(share * count) for share in (found[metric], value)]
                assert right[0] == right[1], (model, task, metric, right)
                print(f"lm_eval {lm_eval.__version__}: {model} {task} {metric}: {right[0]} of {count} right, as molora eval")


def write_task(folder, meta, records):
    """A task of lm-eval made from a local file."""
    folder.mkdir(exist_ok=True)
    task = {
        "task": meta["task"],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(records)}},
        "test_split": "test",
        "doc_to_text": PROMPT,
    }
    task |= written(meta["answer"]["regex"]) if meta["type"] == "generation" else chosen(meta)
    # JSON is YAML.
    write(folder / f"{meta['task']}.yaml", task)


def chosen(meta):
    """How lm-eval scores choices by their probabilities."""
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": meta.get("labels") or "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")],
    }


def written(answer):
    """How lm-eval finds the answer in a text that a model writes."""
    last = {"function": "regex", "regex_pattern": f"({answer['pattern']})", "group_select": -1}
    return {
        "output_type": "generate_until",
        "doc_to_target": "{{output[-1]}}",
        "generation_kwargs": {"until": ["</s>"], "max_gen_toks": WRITTEN, "temperature": 0.0, "do_sample": False},
        "filter_list": [{"name": "last", "filter": [last, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def evaluate(folder, url, model, task):
    """The number of records, and the metrics."""
    out = folder / "lm_eval" / "out" / f"{model}-{task}".replace(":", "-")
    settings = {
        "model": model,
        "base_url": f"{url}/completions",
        "tokenizer": folder / "base",
        "num_concurrent": 4,
        "max_length": 2048,
        "tokenized_requests": True,
    }
    listed = ",".join(f"{key}={value}" for key, value in settings.items())
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", listed]
    command += ["--tasks", task, "--include_path", str(folder / "lm_eval"), "--batch_size", "4"]
    command += ["--output_path", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    [file] = out.rglob("results_*.json")
    results = json.loads(file.read_text())
    found = {name.removesuffix(",none"): value for name, value in results["results"][task].items()}
    return results["n-samples"][task]["effective"], found


def main():
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "make":
        make(folder)
        return
    url, key = sys.argv[3:5]
    os.environ["OPENAI_API_KEY"] = key
    # The tasks are local files: nothing may be asked of a hub.
    os.environ["HF_HOME"] = str(folder / "cache")
    Openai(url, key).check()
    check_lm_eval(folder, url)


if __name__ == "__main__":
    main()
