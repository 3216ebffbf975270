"""A model of transformers, trained and exported as safetensors.

    python examples/recipes/hugging_face.py

docs/hugging_face.md has more about it.
"""

import torch

try:
    from transformers import GPT2Config, GPT2LMHeadModel
except ModuleNotFoundError:
    raise SystemExit("this recipe needs transformers: pip install transformers") from None

from helios_lite import DataModule, Model, Split, Trainer


class Writer(Model):
    def setup(self, fast_init=False):
        config = GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        self.net = self.parallelize(GPT2LMHeadModel(config))  # Or GPT2LMHeadModel.from_pretrained(folder).
        if not fast_init:
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=3e-3)

    def train_step(self, batch, state):
        with self.autocast():
            loss = self.net(input_ids=batch["tokens"], labels=batch["tokens"]).loss
        self.backward(loss)
        self.optimizer_step(self.optimizer)
        self.log("loss", loss)


class Counting(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"tokens": (index + torch.arange(12)) % 16}


data = DataModule(Split(Counting(), batch_size=8, shuffle=True))
result = Trainer(max_epochs=6, progress=False, log_level="quiet").fit(Writer("writer"), data)

model = Writer.load_from_checkpoint(result.run_folder)
model.net.save_pretrained(result.run_folder / "exported")  # config.json and model.safetensors
again = GPT2LMHeadModel.from_pretrained(result.run_folder / "exported").eval()
tokens = torch.arange(8)[None]
print(torch.equal(model.net(tokens).logits, again(tokens).logits))
