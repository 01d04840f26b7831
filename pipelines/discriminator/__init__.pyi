from .edit_stage import EDIT as EDIT
from .stage import DISCRIMINATOR as DISCRIMINATOR, check_labels as check_labels
