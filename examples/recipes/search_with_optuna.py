"""A search with Optuna, which prunes trials.

    python examples/recipes/search_with_optuna.py

docs/optuna.md has more about it.
"""

try:
    import optuna
except ModuleNotFoundError:
    raise SystemExit("this recipe needs optuna: pip install optuna") from None
import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios_lite import Callback, DataModule, Model, Split, Trainer


class Line(Model):
    def __init__(self, rate):
        super().__init__("line")
        self.hparams["rate"] = rate

    def setup(self, fast_init=False):
        self.net = self.parallelize(nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=self.hparams["rate"])

    def train_step(self, batch, state):
        self.backward((self.net(batch[0]) - batch[1]).square().mean())
        self.optimizer_step(self.optimizer)

    def valid_step(self, batch, step):
        self.log("loss", (self.net(batch[0]) - batch[1]).square().mean())


class Prune(Callback):
    def __init__(self, trial):
        self.trial = trial

    def on_training_epoch_end(self, current_epoch):
        self.trial.report(self.model.metrics["valid/loss"], current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def objective(trial):
    rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
    x = torch.rand(96, 3, generator=torch.Generator().manual_seed(0))
    splits = TensorDataset(x[:64], x[:64].sum(1, True)), TensorDataset(x[64:], x[64:].sum(1, True))
    data = DataModule(Split(splits[0], batch_size=8, shuffle=True), Split(splits[1], batch_size=32))
    options = {"run_name": f"search/{trial.number}", "max_epochs": 6, "monitor": "valid/loss"}
    trainer = Trainer(**options, callbacks=[Prune(trial)], progress=False, log_level="quiet")
    return trainer.fit(Line(rate), data).best_metrics["valid/loss"]


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0), pruner=optuna.pruners.MedianPruner(3))
study.optimize(objective, n_trials=8)
pruned = [trial.number for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
print(f"best rate {study.best_params['rate']:.3f}, pruned trials {pruned}")
