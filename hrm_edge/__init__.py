"""HRM-Text on small devices: the ground that training, export and runtime stand on."""
