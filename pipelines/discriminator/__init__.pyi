from .stage import DISCRIMINATOR as DISCRIMINATOR, check_labels as check_labels
