"""Files of a run, damaged as disks, power cuts and editors damage them, and their readers."""
