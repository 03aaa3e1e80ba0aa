"""The registered model as MLflow loads it: uint8 clips in, log1p(engagement) out (models from code)."""

from pathlib import Path

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from training.models import for_inference, load_checkpoint, to_input


class EngagementPyfunc(PythonModel):
    """``predict``: uint8 (B, S, H, W, 3) RGB, or {"clips": such} -> float32 (B,)."""

    def load_context(self, context: PythonModelContext) -> None:
        self.model = for_inference(load_checkpoint(Path(context.artifacts["checkpoint"])))

    def predict(self, context, model_input, params=None):
        clips = model_input["clips"] if isinstance(model_input, dict) else model_input
        with torch.inference_mode():
            standardised = self.model(to_input(torch.from_numpy(np.ascontiguousarray(clips))))
            return self.model.to_log_engagement(standardised).numpy().astype(np.float32)


set_model(EngagementPyfunc())
