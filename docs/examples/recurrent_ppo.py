"""Reinforcement learning: sb3-contrib's RecurrentPPO, whose LSTMs run through whole sequences of episodes on fastrnn.

Here CartPole shows the positions of cart and pole, but not their velocities, so the policy needs a memory.
RecurrentPPO, which is Schulman et al., "Proximal policy optimization algorithms", arXiv 1707.06347, with an LSTM of 256
units for the actor and one for the critic, learns from batches of sequences. `torch.nn.LSTM` cannot reset its state
inside a sequence, so sb3-contrib loops over time in Python whenever an episode begins inside a batch, that is in nearly
all batches. `fastrnn.torch.LSTM` takes the first steps of episodes as `resets=`.

    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    pip install sb3-contrib==2.9.2
    python docs/examples/recurrent_ppo.py

Trains both from the same seed. Exits with an error unless, after the first rollout's forty updates, the policies differ
by at most 1e-4 of their change, and fastrnn processes three times as many frames per second. A frame includes the step
of an environment, the policy's choice and its share of the updates. All times are medians of alternating calls on one
thread.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from checking import claim, quick
from published import one_thread
from torch.nn.utils import parameters_to_vector

import fastrnn.torch

try:
    import gymnasium
    import numpy as np
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.ppo_recurrent import MlpLstmPolicy
    from stable_baselines3.common.env_util import make_vec_env
except ImportError:
    sys.exit("sb3-contrib is not installed: pip install sb3-contrib")

SEED, ENVIRONMENTS, STEPS, BATCH, ROLLOUTS = 0, 8, 128, 256, 5


class WithoutVelocities(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Only CartPole's position and angle."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        self.observation_space = gymnasium.spaces.Box(space.low[::2], space.high[::2], dtype=space.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[::2]


class FastPolicy(MlpLstmPolicy):
    """sb3-contrib's policy with two LSTMs of fastrnn."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        fastrnn.torch.replace(self)  # parameters stay the same objects, so the optimizer has them

    @staticmethod
    def _process_sequence(features: Any, lstm_states: Any, episode_starts: Any, lstm: Any) -> Any:
        """Like sb3-contrib's, without a loop: features (n_seq * T, I), and whether each of them begins an episode."""
        n_seq = lstm_states[0].shape[1]
        x = features.reshape(n_seq, -1, lstm.input_size).swapaxes(0, 1)
        resets = episode_starts.reshape(n_seq, -1).swapaxes(0, 1) != 0
        y, lstm_states = lstm(x, lstm_states, resets=resets)
        return y.transpose(0, 1).flatten(end_dim=1), lstm_states


def learner(policy: type[MlpLstmPolicy], steps: int) -> RecurrentPPO:
    """Return a learner that makes ten epochs of updates after every so many steps of each environment, with fixed
    seeds.
    """
    env = make_vec_env("CartPole-v1", ENVIRONMENTS, SEED, wrapper_class=WithoutVelocities)
    return RecurrentPPO(policy, env, n_steps=steps, batch_size=BATCH, seed=SEED, device="cpu")


def train(model: RecurrentPPO) -> float:
    """Collect one rollout and learn from it; return the frames per second."""
    start = time.perf_counter()
    frames = ENVIRONMENTS * model.n_steps
    model.learn(frames, reset_num_timesteps=False)
    return frames / (time.perf_counter() - start)


def weights(model: RecurrentPPO) -> torch.Tensor:
    return parameters_to_vector(model.policy.parameters()).detach().clone()


def main() -> None:
    short = quick("Train a policy with a memory.")
    one_thread()
    torch.set_num_threads(1)
    models, before, after = {}, [], []
    for name, policy in (("sb3-contrib", MlpLstmPolicy), ("fastrnn", FastPolicy)):
        model = models[name] = learner(policy, STEPS // 4 if short else STEPS)
        before.append(weights(model))
        train(model)
        after.append(weights(model))
    difference = ((after[0] - after[1]).norm() / (after[0] - before[0]).norm()).item()
    claim(f"one rollout later the policies differ by {difference:.0e} of what they learnt", difference < 1e-4)
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(1 if short else ROLLOUTS):
        for name, model in models.items():  # alternating, so that other load affects both alike
            speeds[name].append(train(model))
    for name, values in speeds.items():
        print(f"  {name:11} {np.median(values):6.0f} frames a second")
    ratio = np.median(speeds["fastrnn"]) / np.median(speeds["sb3-contrib"])
    claim(f"fastrnn makes {ratio:.1f} times as many", ratio > (1 if short else 3))


if __name__ == "__main__":
    main()
