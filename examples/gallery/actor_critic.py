"""Sixteen poles are balanced by an actor, and a critic tells it how that goes (pytorch/examples: actor_critic).

Shows a loop with no data set whose scene must be saved as well: the carts are a tensor in a plain dictionary, which the
Checkpointer keeps beside model, optimizer and random numbers. Advantage actor-critic, Mnih and others (2016).

    python actor_critic.py [RUN]
"""

import math
import sys

import torch
from torch import nn

from surefoot import Checkpointer, Journal

STATED = 180.0  # mean length of 64 episodes, of at most 200 steps


def push(carts: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Carts with poles (N, 4), 0.02 s later: Barto, Sutton and Anderson (1983). Place, speed, angle, turning."""
    _, speed, angle, turning = carts.T
    force, sine, cosine = 20.0 * right - 10.0, angle.sin(), angle.cos()
    shared = (force + 0.05 * turning**2 * sine) / 1.1
    angular = (9.8 * sine - cosine * shared) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    linear = shared - 0.05 * angular * cosine / 1.1
    return carts + 0.02 * torch.stack([speed, linear, turning, angular], dim=1)


def fallen(carts: torch.Tensor) -> torch.Tensor:
    """Which poles are 12 degrees off, or whose carts have left (2.4 m)."""
    return (carts[:, 0].abs() > 2.4) | (carts[:, 2].abs() > math.radians(12))


class ActorCritic(nn.Module):
    """Carts (N, 4) to logits of the two pushes (N, 2), and what reward is still expected (N,)."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))
        self.critic = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, carts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.actor(carts), self.critic(carts)[:, 0]


def fresh(count: int) -> torch.Tensor:
    return torch.rand(count, 4) * 0.1 - 0.05


def main(run: str, steps: int = 800, ahead: int = 16) -> float:
    """Train; returns the mean length of 64 episodes of the trained actor."""
    torch.manual_seed(0)
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scene = {"carts": fresh(16), "ages": torch.zeros(16)}
    parts = {"model": model, "optimizer": optimizer, "scene": scene}
    with Journal(run) as journal, Checkpointer(run, journal=journal, every="50 steps", **parts) as saver:
        saver.resume()
        while saver.steps < steps:
            carts, ages, seen = scene["carts"], scene["ages"], []
            for _ in range(ahead):
                logits, value = model(carts)
                right = torch.multinomial(logits.detach().softmax(1), 1)[:, 0]
                log = logits.log_softmax(1)
                carts, ages = push(carts, right), ages + 1
                done, late = fallen(carts), ages >= 200
                # What an episode that is cut off after 200 steps would have gone on to earn is the critic's to say.
                bonus = torch.where(late & ~done, 0.98 * model(carts)[1].detach(), 0.0)
                seen.append((value, log[range(16), right], -(log.exp() * log).sum(1), 1 + bonus, done | late))
                carts = torch.where((done | late)[:, None], fresh(16), carts)
                ages = torch.where(done | late, 0.0, ages)
            scene.update(carts=carts, ages=ages)
            returns, loss = model(carts)[1].detach(), torch.zeros(())
            for value, chosen, entropy, reward, over in reversed(seen):
                returns = reward + 0.98 * returns * ~over
                advantage = returns - value
                loss = loss + (0.5 * advantage.square() - chosen * advantage.detach() - 0.01 * entropy).mean() / ahead
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            journal.step(saver.steps + 1, {"expected reward": returns.mean()})
            saver.step()
    with torch.no_grad():
        carts, upright, lengths = fresh(64), torch.ones(64, dtype=torch.bool), torch.zeros(64)
        for _ in range(200):
            carts = push(carts, torch.multinomial(model(carts)[0].softmax(1), 1)[:, 0])
            lengths, upright = lengths + upright, upright & ~fallen(carts)
    return lengths.mean().item()


if __name__ == "__main__":
    length = main(sys.argv[1] if len(sys.argv) > 1 else "runs/actor_critic")
    print(f"figure: mean length of an episode {length:.0f} (stated: at least {STATED:.0f})")
    sys.exit(not length >= STATED)
