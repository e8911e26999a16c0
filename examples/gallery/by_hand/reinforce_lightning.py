"""The job of ../reinforce.py in Lightning; an epoch is 20 episodes, which its steps play.

python reinforce_lightning.py [RUN]
"""

import math
import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

STATED = 150.0  # mean length of 50 episodes, of at most 200 steps


def push(state: torch.Tensor, action: int) -> torch.Tensor:
    """A cart with a pole, 0.02 s later: Barto, Sutton and Anderson (1983). `state`: place, speed, angle, its speed."""
    place, speed, angle, turning = state.tolist()
    force, sine, cosine = (10.0 if action else -10.0), math.sin(angle), math.cos(angle)
    shared = (force + 0.05 * turning**2 * sine) / 1.1
    angular = (9.8 * sine - cosine * shared) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    linear = shared - 0.05 * angular * cosine / 1.1
    return torch.tensor([place + 0.02 * speed, speed + 0.02 * linear, angle + 0.02 * turning, turning + 0.02 * angular])


def episode(policy: nn.Module, longest: int = 200) -> list[torch.Tensor]:
    """Log probabilities of the actions taken until the pole falls (12 degrees), or the cart leaves (2.4 m)."""
    state, chosen = torch.rand(4) * 0.1 - 0.05, []
    while len(chosen) < longest and abs(state[0]) < 2.4 and abs(state[2]) < math.radians(12):
        log = policy(state).log_softmax(0)
        action = int(torch.multinomial(log.exp().detach(), 1))
        chosen.append(log[action])
        state = push(state, action)
    return chosen


class Player(lightning.LightningModule):
    """The policy with its loss and optimizer, and the running reward."""

    def __init__(self):
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        self.register_buffer("running", torch.tensor(10.0))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        chosen = episode(self.policy)
        self.running += 0.05 * (len(chosen) - self.running)
        if self.running >= 190:
            self.trainer.should_stop = True
        returns = torch.zeros(len(chosen))
        ahead = 0.0
        for step in reversed(range(len(chosen))):
            ahead = 1 + 0.99 * ahead
            returns[step] = ahead
        advantage = (returns - returns.mean()) / (returns.std(correction=0) + 1e-8)
        return (-torch.stack(chosen) * advantage).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(run: str, episodes: int = 400) -> float:
    """Train; returns the mean length of 50 episodes of the trained policy."""
    lightning.seed_everything(0, verbose=False)
    player = Player()
    trainer = lightning.Trainer(
        max_epochs=episodes // 20,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(player, DataLoader(range(20)), ckpt_path="last")
    with torch.no_grad():
        return sum(len(episode(player.policy)) for _ in range(50)) / 50


if __name__ == "__main__":
    length = main(sys.argv[1] if len(sys.argv) > 1 else "runs/reinforce")
    print(f"figure: mean length of an episode {length:.0f} (stated: at least {STATED:.0f})")
    sys.exit(not length >= STATED)
