"""One small recipe of every family, TOML text that trains in a second or two: small Navon digits, 8 images a step."""

_DATA = """
[data]
kind = "navon-sklearn"
train_images = 32
test_images = 20
[data.options]
canvas = 16
glyph = 4
"""

DSN = f"""
name = "tiny"
model = "dsn-navon"
[options]
image_size = 16
block_layers = [1, 1, 1]
{_DATA}
[train]
epochs = 3
ungated_epochs = 1
batch = 8
lr = 0.05
[gates]
slope_step = 2.0
sparsity = 1.0
target = [0.5, 0.5]
"""

LSN = f"""
name = "tiny"
model = "lsn-navon"
[options]
image_size = 16
block_layers = [1, 1, 1]
{_DATA}
[train]
epochs = 2
ungated_epochs = 1
batch = 8
lr = 0.05
"""

SKIPNET = f"""
name = "tiny"
model = "skipnet-38-rnn"
task = "fine"
[options]
in_channels = 1
image_size = 16
stem_width = 4
stage_units = [2, 2, 2]
stage_widths = [4, 8, 8]
{_DATA}
[train]
iterations = 4
batch = 8
lr = 0.05
"""

GATERNET = f"""
name = "tiny"
model = "gaternet-resnet-20"
task = "fine"
[options]
in_channels = 1
image_size = 16
backbone_options = {{ stage_units = [1, 1, 1], shortcut = "pad" }}
gater_options = {{ stage_units = [1, 1, 1], shortcut = "pad" }}
{_DATA}
[train]
epochs = 2
settled_epochs = 1
batch = 8
lr = 0.02
[gater]
begin = "calibrated"
off = 0.3
dropout = 0.05
"""

GUNN = f"""
name = "tiny"
model = "gunn-15"
task = "fine"
[options]
image_size = 16
in_channels = 1
widths = [6, 8]
segments = [3, [1, 7]]
{_DATA}
[train]
iterations = 6
batch = 8
schedule = "step"
milestones = [4]
"""

ACT = f"""
name = "tiny"
model = "act-32"
task = "fine"
[options]
in_channels = 1
image_size = 16
stem_width = 4
stage_units = [3, 3, 3]
stage_widths = [4, 8, 8]
{_DATA}
[train]
iterations = 30
batch = 8
lr = 0.2
"""
