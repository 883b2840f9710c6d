"""The program's messages in Chinese. `reference/messages.py` uses the table; a test compares it with the sources."""

TABLE: dict[str, str] = {
    # a training
    "{}: {} training and {} of {}": "{0}：{1} 张训练图像，{2}，{3}",
    "no CIFAR-10 under {}/: using Shapes; to get it: --dataset cifar10 --download": (
        "{0}/ 下没有 CIFAR-10：使用 Shapes；如需下载：--dataset cifar10 --download"
    ),
    "{}{}: {} parameters, {}": "{0}{1}：{2} 个参数，{3}",
    "run folder: {}": "训练文件夹：{0}",
    " of the reference's layers": "（使用 reference 的层）",
    "on {} in {}": "设备 {0}，精度 {1}",
    "on {} in {}, compiled ({})": "设备 {0}，精度 {1}，已编译（{2}）",
    "cpu ({})": "cpu（{0}）",
    "--precision auto: {} ({}, {})": "--precision auto：选择 {0}（{1}，{2}）",
    "{} ms a step in float32, {} ms a step in bfloat16": "float32 每步 {0} 毫秒，bfloat16 每步 {1} 毫秒",
    "remembered from an earlier run": "沿用以前的测量",
    "measured now": "刚刚测得",
    "resuming after step {} (epochs done: {} of {})": "从第 {0} 步之后恢复（已完成 {1}/{2} 个 epoch）",
    "stopped after step {}, nothing is lost; resume with: --resume {}": (
        "在第 {0} 步之后停止，没有丢失任何内容；恢复训练：--resume {1}"
    ),
    "finishing this step and saving; once more to stop at once": "正在完成这一步并保存；再按一次立即停止",
    "epoch {}/{}": "epoch {0}/{1}",
    "{} left, run {}, loss {}, accuracy {}": "剩余 {0}，共 {1}，损失 {2}，正确率 {3}",
    "step {}: train_loss {}, train accuracy {} in this epoch": "第 {0} 步：train_loss {1}，本 epoch 训练正确率 {2}",
    "epoch {}/{}: loss {}, test loss {}, accuracy {}, {} images/s": (
        "epoch {0}/{1}：损失 {2}，测试损失 {3}，正确率 {4}，每秒 {5} 张图像"
    ),
    "accuracy per class, the least accurate first:": "各类别的正确率，从低到高：",
    "  and {} more classes: summary.json": "  另有 {0} 个类别，见 summary.json",
    "most confused: {} taken for {}, {}": "最常混淆：{0} 被判为 {1}，{2}",
    "test accuracy {} after epoch {} (best {}): {}": "{1} 个 epoch 后测试正确率为 {0}（最高 {2}）：{3}",
    "next:": "接下来可以：",
    "the curves, images and settings of this run": "查看这次训练的曲线、图像和设置",
    "the class of an image": "预测一张图像的类别",
    "the network for other programs": "导出网络，供其他程序使用",
    "the same network to 99 % in one epoch": "同一个网络，一个 epoch 达到 99 %",
    "usually a higher accuracy in one epoch": "通常一个 epoch 就达到更高的正确率",
    # data
    "broken images that are skipped: {}: {}": "跳过的损坏图像：{0} 张：{1}",
    "classes with fewer than {} training images: {} of {}: {}": "训练图像少于 {0} 张的类别：{2} 个中的 {1} 个：{3}",
    "sizes of {} files: {} pixels": "{0} 个文件的尺寸：{1} 像素",
    "sizes of {} files: {} to {} pixels, most often {} ({})": "{0} 个文件的尺寸：{1} 到 {2} 像素，最常见的是 {3}（{4}）",
    "modes: {}; the network gets 32×32 pixels in RGB": "模式：{0}；网络得到 32×32 像素的 RGB 图像",
    "decoding {}": "解码 {0}",
    "comparing {}": "比较 {0}",
    " images": " 张图像",
    "test images that are also training images: {} ({}), so the test accuracy is too high: {}": (
        "同时也是训练图像的测试图像：{0} 张（{1}），因此测试正确率偏高：{2}"
    ),
    # images
    "loss": "损失",
    "accuracy": "正确率",
    "learning rate": "学习率",
    "train": "训练",
    "test": "测试",
    "step": "步",
    "is {}": "实为 {0}",
    "is": "实为",
    "taken for": "判为",
    "images": "图像数",
    "every test image is classified correctly": "所有测试图像都分类正确",
    "rows: is\ncolumns:\ntaken for": "行：实为\n列：判为",
    "{} classes; rows: is; columns: taken for": "{0} 个类别；行：实为；列：判为",
    "... and {} more: the classes in config.json, from 0": "…… 另有 {0} 个：见 config.json 中的 classes，从 0 开始",
    # model description
    "Test accuracy {} (95 % interval {} to {}, {}) after epoch {} of {}.": (
        "第 {4}/{5} 个 epoch 后，测试正确率为 {0}（95 % 区间 {1} 到 {2}，{3}）。"
    ),
    "Curves of the training": "训练曲线",
    "Confusion matrix": "混淆矩阵",
    "Most confident mistakes": "最有把握的错误",
    "Examples of the data": "数据示例",
    "Data": "数据",
    "Data set {}: {}, {}, {}.": "数据集 {0}：{1}，{2}，{3}。",
    "Training": "训练",
    "Network Ocean, {} parameters; recipe {}. The settings:": "网络 Ocean，{0} 个参数；配方 {1}。设置：",
    "Accuracy per class": "各类别的正确率",
    "The {} least accurate of {} classes:": "{1} 个类别中正确率最低的 {0} 个：",
    "class": "类别",
    "test images": "测试图像",
    "Most confused:": "最常混淆：",
    "Environment": "环境",
    "device": "设备",
    "Use": "使用",
    "The probabilities order the classes; they are not calibrated.": "概率只用于给类别排序，没有经过校准。",
    # predict.py, export.py, accuracy.py
    "using the newest run: {}": "使用最新的训练：{0}",
    "note: {}": "注意：{0}",
    "answers written to {}: {}": "预测已写入 {0}：{1}",
    "{}: {} bytes; its scores of {} images differ from the network's by at most {}": (
        "{0}：{1} 字节；在 {2} 张图像上，它的得分与网络的得分最多相差 {3}"
    ),
    (
        "loading this file with torch.load(FILE, weights_only=False) runs code of the file and needs reference/ with the "
        "class of the network; prefer safetensors or torch-export for files that others get"
    ): (
        "用 torch.load(FILE, weights_only=False) 加载此文件会运行文件中的代码，并且需要 reference/ 中网络的类定义；"
        "要交给别人的文件，请用 safetensors 或 torch-export"
    ),
    "seed  test accuracy  test loss  sum of batch means": "种子  测试正确率  测试损失  各批均值之和",
    "{} seeds, {} each: {}": "{0} 个种子，各 {1}：{2}",
    "against {}: {}": "与 {0} 比较：{1}",
    "| recipe fast, {}, {} seeds | test accuracy |": "| 配方 fast，{0}，{1} 个种子 | 测试正确率 |",
    "{}; neither varies, so there is no test: {} here, {} there": "{0}；两者都没有变化，因此不做检验：这里 {1}，那里 {2}",
    "{}; Welch's t {}, {} degrees, p {}": "{0}；Welch t 值 {1}，自由度 {2}，p 值 {3}",
    "all of it": "全部成分",
    "SGD with momentum instead of Muon": "用带动量的 SGD 代替 Muon",
    "a random, trained first layer instead of a whitening one": "第一层随机初始化并训练，而不是白化",
    "a constant rate instead of a falling one": "固定的学习率，而不是下降的学习率",
    "no momentum instead of 0.9": "动量为 0 而不是 0.9",
    "no weight decay": "没有权重衰减",
    "the stored order instead of a new one every epoch": "按存储顺序，而不是每个 epoch 重新打乱",
    "no mirrored images": "不翻转图像",
    "no shifted images": "不平移图像",
    # errors
    "error: {}": "错误：{0}",
    "interrupted": "已中断",
    "error: standard output cannot be written: {}": "错误：无法写入标准输出：{0}",
    "{} could not be written: {}": "无法写入 {0}：{1}",
    "{}: the events for TensorBoard could not be written: {}": "{0}：无法写入供 TensorBoard 使用的事件：{1}",
    "{} is not written: {}": "没有写入 {0}：{1}",
    "{} is not an Ocean Spec checkpoint: {}; {}": "{0} 不是 Ocean Spec 的检查点：{1}；{2}",
    "it lacks the entry format = {}": "缺少条目 format = {0}",
    "{} has checkpoint version {}, this program reads version {}: update it": (
        "{0} 的检查点版本是 {1}，本程序只能读取版本 {2}：请更新本程序"
    ),
    "{} cannot be used: {}": "{0} 无法使用：{1}",
    "{} was refused: it holds more than plain data ({}), and reading that could run code; {}": (
        "拒绝读取 {0}：其中不只有普通数据（{1}），读取它可能会运行代码；{2}"
    ),
    "{} is damaged or cut off: {}": "{0} 已损坏或不完整：{1}",
    "its instructions make no sense": "其中的指令没有意义",
    "{} is not a checkpoint: {}": "{0} 不是检查点：{1}",
    "no CIFAR-10 in {}: {}; put one of them there or use --download": (
        "{0} 中没有 CIFAR-10：{1}；请放入其中之一，或使用 --download"
    ),
    "neither the folder {} nor the archive {} is there": "既没有文件夹 {0}，也没有压缩包 {1}",
    "there is no archive {}": "没有压缩包 {0}",
    "{}: wrong checksum, MD5 {} instead of {}: {}": "{0}：校验和错误，MD5 为 {1}，应为 {2}：{3}",
    "delete it and use --download": "请删除它并使用 --download",
    "{}: truncated or damaged ({}): {}": "{0}：不完整或已损坏（{1}）：{2}",
    "{}: holds no {}/{}: {}": "{0}：其中没有 {1}/{2}：{3}",
    "{}: no such file: unpack {} again, or delete {} and use --download": (
        "{0}：没有此文件：请重新解压 {1}，或删除 {2} 并使用 --download"
    ),
    "{}: larger than {} MiB, which no archive of CIFAR-10 is": "{0}：大于 {1} MiB，CIFAR-10 没有这么大的压缩包",
    "error: there is not enough memory ({})": "错误：内存不足（{0}）",
    "{}: larger than {} MiB, which no file of CIFAR-10 is": "{0}：大于 {1} MiB，CIFAR-10 没有这么大的文件",
    "{}: {}: unpack {} again, or delete {} and use --download": "{0}：{1}：请重新解压 {2}，或删除 {3} 并使用 --download",
    "wrong checksum, MD5 {} instead of {}": "校验和错误，MD5 为 {0}，应为 {1}",
    "{}: unpacks to more than {} MiB: {}": "{0}：解压后超过 {1} MiB：{2}",
    "{}: unpacks to more than its members: {}": "{0}：解压后的内容多于其成员：{1}",
    "{}: holds {} twice: {}": "{0}：{1} 出现了两次：{2}",
    "{}: member {} {}: {}": "{0}：成员 {1} {2}：{3}",
    "is larger than {} MiB": "大于 {0} MiB",
    "{}: not a file of CIFAR-10 ({}); nothing in it was run": "{0}：不是 CIFAR-10 的文件（{1}）；没有运行其中的任何内容",
    "cannot download {}: {}{}": "无法下载 {0}：{1}{2}",
    "no address given": "没有给出地址",
    "; run again to continue {}": "；再次运行可继续 {0}",
    "cannot download from {}: the address must start with http:// or https://": (
        "无法从 {0} 下载：地址必须以 http:// 或 https:// 开头"
    ),
    "{} must be {} hexadecimal digits, got {}": "{0} 必须是 {1} 位十六进制数字，得到的是 {2}",
    "{}: there are no class folders in it; {}": "{0}：其中没有类别文件夹；{1}",
    "{}: there is no such folder; {}": "{0}：没有此文件夹；{1}",
    "a tree of images is laid out as train/<class>/… and test/<class>/…": (
        "图像应按 train/<类别>/… 和 test/<类别>/… 存放"
    ),
    "{}: {} has no such class; add it there or remove it here": "{0}：{1} 中没有此类别；请在那里添加，或在这里删除",
    "{}: the class folder holds no images; add some or remove it": "{0}：类别文件夹中没有图像；请添加图像或删除文件夹",
    "{}: two class folders are both printed as {}; rename one": "{0}：两个类别文件夹都显示为 {1}；请重命名其中一个",
    "{}; {}: fix or remove them, or leave them out with --skip-broken": (
        "{0}；{1}：请修复或删除，或用 --skip-broken 跳过"
    ),
    "broken images: {} of {}": "损坏的图像：{1} 张中有 {0} 张",
    "{}, and so is every image of class {}: fix or remove it": "{0}，类别 {1} 的所有图像都是如此：请修复或删除",
    "{}: not a readable image ({})": "{0}：不是可读的图像（{1}）",
    "no image format is recognized": "无法识别图像格式",
    "No such file or directory": "没有此文件或文件夹",
    "Is a directory": "是文件夹",
    "Permission denied": "没有权限",
    "No space left on device": "磁盘空间不足",
    "Read-only file system": "文件系统是只读的",
    "Operation not permitted": "不允许此操作",
    "Not a directory": "不是文件夹",
    "File exists": "已有同名文件",
    "{}; make room on that disk": "{0}；请在该磁盘上腾出空间",
    "{}; choose a folder that can be written": "{0}；请选择可以写入的文件夹",
    "cannot use {}: {}": "无法使用 {0}：{1}",
    "LabeledFolder: there is no folder {}": "LabeledFolder：没有文件夹 {0}",
    "LabeledFolder: {} holds no images (such as .jpg or .png)": "LabeledFolder：{0} 中没有图像（如 .jpg 或 .png）",
    "{}: there are no images in this folder (such as .jpg or .png)": "{0}：此文件夹中没有图像（如 .jpg 或 .png）",
    "{}: this folder cannot be read ({})": "{0}：无法读取此文件夹（{1}）",
    "{}: the network's scores for it are not finite": "{0}：网络给出的得分不是有限数",
    "--device {}: there is no such device here; there is {} (or say auto)": (
        "--device {0}：这里没有此设备；可用的有 {1}（或使用 auto）"
    ),
    '--to onnx needs {}: python -m pip install -e ".[export]"': (
        '--to onnx 需要 {0}：python -m pip install -e ".[export]"'
    ),
    "--to {}: the file gives scores {}, the network {}": "--to {0}：文件给出的得分形状为 {1}，网络为 {2}",
    "--to {}: scores of the file differ from the network's by {}; not written": (
        "--to {0}：文件的得分与网络相差 {1}；没有写入"
    ),
    "top_k and batch_size must be at least 1, got {} and {}": "top_k 和 batch_size 至少为 1，得到的是 {0} 和 {1}",
    "{} holds no best.pt: its training has not finished an epoch": "{0} 中没有 best.pt：该训练还没有完成一个 epoch",
    "no finished epoch of a run is in {}/: train first, or name a file with --checkpoint": (
        "{0}/ 中没有完成过 epoch 的训练：请先训练，或用 --checkpoint 指定文件"
    ),
    "--output {} is not empty; choose another, or resume the run in it: --resume {}": (
        "--output {0} 不是空文件夹；请另选一个，或恢复其中的训练：--resume {1}"
    ),
    "--output {} is a file; name a folder": "--output {0} 是文件；请指定文件夹",
    "{}: another run is using this folder; choose another --output": (
        "{0}：另一个训练正在使用此文件夹；请换一个 --output"
    ),
    "{} was trained on other data than the data set here; resuming would mix them": (
        "{0} 是用其他数据训练的；恢复训练会混用两种数据"
    ),
    "{} holds no state to resume from ({})": "{0} 中没有可供恢复的状态（{1}）",
    (
        "{} was deleted or renamed while the training ran: stopped after step {}. A renamed folder holds the last "
        "checkpoint: --resume its new name"
    ): "{0} 在训练过程中被删除或重命名：在第 {1} 步之后停止。重命名后的文件夹中有最后的检查点：请 --resume 新名称",
    "results.png needs Matplotlib: python -m pip install matplotlib; or leave it out: --no-plots": (
        "results.png 需要 Matplotlib：python -m pip install matplotlib；或者不绘图：--no-plots"
    ),
    (
        "--resume {}: the run was stopped before it began, and there is nothing to resume; start it again with "
        "--output {}"
    ): "--resume {0}：该训练在开始之前就已停止，没有可恢复的内容；请用 --output {1} 重新开始",
    "--resume {}: no run is there ({}: {})": "--resume {0}：这里没有训练（{1}：{2}）",
    "--resume {}: {} is damaged (it has no entry {})": "--resume {0}：{1} 已损坏（缺少条目 {2}）",
    "--resume {}: {} is damaged ({})": "--resume {0}：{1} 已损坏（{2}）",
    "--output {}: a run that is resumed stays in its folder, {}": "--output {0}：恢复的训练留在原来的文件夹 {1} 中",
    "--epochs {}: this run's learning rate falls to 0 at the end of epoch {}, and resuming it cannot change that": (
        "--epochs {0}：这次训练的学习率在第 {1} 个 epoch 结束时降到 0，恢复训练无法改变"
    ),
    "{} {}: this run was begun with {}, and resuming it cannot change that": (
        "{0} {1}：这次训练开始时为 {2}，恢复训练无法改变"
    ),
    "{}: this run was begun with {}, and resuming it cannot change that": "{0}：这次训练开始时为 {1}，恢复训练无法改变",
    "--learning-rate must be above 0 and finite, got {}": "--learning-rate 必须大于 0 且有限，得到的是 {0}",
    "--momentum must be below 1 for --optimizer muon, got {}": "--optimizer muon 的 --momentum 必须小于 1，得到的是 {0}",
    "--momentum is for --optimizer sgd and muon, but --optimizer is {}, and --momentum {}": (
        "--momentum 只用于 --optimizer sgd 和 muon，但 --optimizer 是 {0}，--momentum 是 {1}"
    ),
    "--download fetches CIFAR-10, but --dataset is {}": "--download 下载的是 CIFAR-10，但 --dataset 是 {0}",
    "{} must be at least {}, got {}": "{0} 至少为 {1}，得到的是 {2}",
    "{} must be below {}, got {}": "{0} 必须小于 {1}，得到的是 {2}",
    "--epochs {}: {} has done {} already": "--epochs {0}：{1} 已完成 {2}",
    "{}: stopped. {} still holds the last good state; try a --learning-rate below {}": (
        "{0}：已停止。{1} 中仍有最后的正常状态；请尝试小于 {2} 的 --learning-rate"
    ),
    "{} has not enough memory for this training{}. Try a --batch-size below {}, or another --device": (
        "{0} 的内存不足以进行这次训练{1}。请尝试小于 {2} 的 --batch-size，或换一个 --device"
    ),
    "; {} is unchanged": "；{0} 没有改变",
    "--compile {} does not work here ({}); leave it out": "--compile {0} 在这里无法使用（{1}）；请去掉它",
    "--output is needed: the folder for the runs": "需要 --output：存放各次训练的文件夹",
    "stopped; the same command resumes {}": "已停止；用同样的命令可恢复 {0}",
    "the test loss after step {} is {}": "第 {0} 步之后的测试损失是 {1}",
    "the loss of step {} is {}": "第 {0} 步的损失是 {1}",
    "--seeds must be at least 2, got {}": "--seeds 至少为 2，得到的是 {0}",
    "--resume {}: a measurement has several runs; give its --output again to resume it": (
        "--resume {0}：一次测量包含多次训练；请再次给出它的 --output 来恢复"
    ),
    "--against {}: needs two finished trainings, seed-*/summary.json, has {}": (
        "--against {0}：需要两次完成的训练 seed-*/summary.json，只有 {1} 次"
    ),
    "--against {}: {} is damaged ({})": "--against {0}：{1} 已损坏（{2}）",
    "--against needs SciPy: python -m pip install scipy": "--against 需要 SciPy：python -m pip install scipy",
    "--ablation is for --recipe fast, got --recipe {}": "--ablation 用于 --recipe fast，得到的是 --recipe {0}",
    "--legacy needs --checkpoint FILE": "--legacy 需要 --checkpoint FILE",
    "IMAGE is missing: name at least one image or folder": "缺少 IMAGE：请至少指定一张图像或一个文件夹",
    "--class-names, --size and --choose need --legacy: this checkpoint needs none of them": (
        "--class-names、--size 和 --choose 需要 --legacy：此检查点不需要它们"
    ),
    "--save {}: there is no answer to draw": "--save {0}：没有可绘制的预测",
    # several processes
    "RANK and WORLD_SIZE must be numbers, as torchrun sets them ({})": "RANK 和 WORLD_SIZE 必须是数字，由 torchrun 设置（{0}）",
    "--device {}: several processes need a GPU each; say --device cuda": "--device {0}：多个进程各需要一块 GPU；请使用 --device cuda",
    "{} processes on this machine, but {}, and each process needs one: --nproc-per-node={}, or --device cpu": (
        "这台机器上有 {0} 个进程，但只有 {1}，每个进程需要一块：--nproc-per-node={2}，或 --device cpu"
    ),
    "another process of this training is gone{}: {}": "这次训练的另一个进程已消失{0}：{1}",
    " or did not answer for {}": "或没有应答超过 {0}",
    "another process of this training is gone, or the job was told to stop ({}): {}": (
        "这次训练的另一个进程已消失，或任务被要求停止（{0}）：{1}"
    ),
    "stopped after step {}": "在第 {0} 步之后停止",
    "stopped before the first step": "在第一步之前停止",
    "{}. The last checkpoint is complete; continue with --resume {}, with any number of processes": (
        "{0}。最后的检查点是完整的；用 --resume {1} 继续，进程数不限"
    ),
    "stopped before the first checkpoint was written; {}": "在写入第一个检查点之前停止；{0}",
    "delete {} and start again": "请删除 {0} 并重新开始",
    "start the same command again": "请再次运行同样的命令",
    # predict.py --legacy
    "{} holds no network {}: there is {}": "{0} 中没有网络 {1}：有 {2}",
    "{} cannot predict: its network does not give a row of scores for an image": "{0} 无法预测：它的网络没有为每张图像给出一行得分",
    "{} cannot predict: {} ({})": "{0} 无法预测：{1}（{2}）",
    "its network fails on an image of {}×{}": "它的网络处理 {0}×{1} 的图像时失败",
    "size must be at least 1, got {}×{}": "size 至少为 1，得到的是 {0}×{1}",
    "{} cannot predict: {}": "{0} 无法预测：{1}",
    "{} cannot predict: its network has no parameters": "{0} 无法预测：它的网络没有参数",
    "{} gives {} for each image, but the number of class names is {}": "{0} 为每张图像给出 {1}，但类别名的数量是 {2}",
    "There are {} networks in it: {}. Choose one of them (predict.py --choose NAME).": (
        "其中有 {0} 个网络：{1}。请选择其中之一（predict.py --choose NAME）。"
    ),
    "There is neither a network nor a state dict in it.": "其中既没有网络，也没有 state dict。",
    "There are {} state dicts in it ({}), but only one of them has weights.": "其中有 {0} 个 state dict（{1}），但只有一个含有权重。",
    "It was saved as model.state_dict without parentheses: the network, not its state dict.": (
        "保存的是不带括号的 model.state_dict：整个网络，而不是它的 state dict。"
    ),
    "It was found under {}.": "它位于 {0} 之下。",
    "There is no working network: {}.": "没有可用的网络：{0}。",
    " under {}": "（位于 {0} 之下）",
    "Its keys and shapes{} are those of {} for {}.": "它的键和形状{0}与用于 {2}的 {1} 相同。",
    "It was pruned: weights are the products of their two parts, weight_orig and weight_mask.": (
        "它经过剪枝：权重是 weight_orig 与 weight_mask 两部分的乘积。"
    ),
    "Other tensors in it, which are left out: {}: {}.": "其中没有使用的其他张量：{0} 个：{1}。",
    "{} is not a file of torch.save: {}": "{0} 不是 torch.save 的文件：{1}",
    "{} cannot be read: there is not enough memory for it": "无法读取 {0}：内存不足",
    "{} cannot be read: {}": "无法读取 {0}：{1}",
    "{} cannot be read: it is no regular file": "无法读取 {0}：它不是普通文件",
    "{} was refused: {}; nothing in it was run": "拒绝读取 {0}：{1}；没有运行其中的任何内容",
    "it cannot be read either ({})": "也无法读取（{0}）",
    "data, but no network": "数据，但没有网络",
    "a whole network": "整个网络",
    "a state dict": "state dict",
    "it holds {}{}, which predict.py --legacy reads without running anything in it": (
        "其中是{0}{1}，predict.py --legacy 可以读取它而不运行其中的任何内容"
    ),
    "it is a safetensors file": "它是 safetensors 文件",
    "it is a TensorFlow Lite file": "它是 TensorFlow Lite 文件",
    "it is a tar archive, as PyTorch before 0.1.10 wrote; let a PyTorch 1 save it anew": (
        "它是 PyTorch 0.1.10 之前写入的 tar 文件；请用 PyTorch 1 重新保存"
    ),
    "it is an ONNX file, a graph and not a network of PyTorch: {}": "它是 ONNX 文件，是计算图而不是 PyTorch 的网络：{0}",
    "it is a TorchScript archive, a program and not data: {}": "它是 TorchScript 文件，是程序而不是数据：{0}",
    "it is an archive of torch.export, a program and not data: {}": "它是 torch.export 的文件，是程序而不是数据：{0}",
    "it is an archive of NumPy arrays (.npz)": "它是 NumPy 数组的压缩包（.npz）",
    "it is a Keras file: convert it in Keras": "它是 Keras 文件：请在 Keras 中转换",
    "it is a zip archive, but has no data.pkl as those of torch.save do": "它是 zip 文件，但没有 torch.save 文件中的 data.pkl",
    "let the program that made it write its state dict with torch.save or safetensors": (
        "请让写入它的程序用 torch.save 或 safetensors 保存 state dict"
    ),
    # doctor.py
    (
        "Check what a training needs on this machine: versions, devices, memory, data; and print a remedy for each "
        "problem. The exit status is 0 if a training can run, 1 if not."
    ): "检查这台机器是否具备训练所需的条件：版本、设备、内存、数据，并为每个问题给出办法。能训练时退出状态为 0，否则为 1。",
    "print one JSON list instead of text": "输出一个 JSON 列表，而不是文本",
    "the language of messages: English, Chinese, or that of the system's locale": "消息的语言：英文、中文，或系统的语言",
    "threads": "线程",
    "memory": "内存",
    "build": "编译目标",
    "differences": "版本差异",
    "instructions": "指令集",
    "driver": "驱动",
    "disk": "磁盘",
    "folder": "文件夹",
    "import torch": "import torch",
    "not installed": "未安装",
    "unknown": "未知",
    "reinstall PyTorch: https://pytorch.org/get-started/locally": "请重新安装 PyTorch：https://pytorch.org/get-started/locally",
    'python -m pip install --upgrade "{}"': 'python -m pip install --upgrade "{0}"',
    'python -m pip install "{}"': 'python -m pip install "{0}"',
    "1 of {} cores": "{0} 个核心中的 1 个",
    "{} of {} cores": "{1} 个核心中的 {0} 个",
    "1 of 1 core": "1 个核心中的 1 个",
    "unset OMP_NUM_THREADS, or say --num-threads to train_full.py": "请取消 OMP_NUM_THREADS，或给 train_full.py 加 --num-threads",
    "{} GiB": "{0} GiB",
    "close other programs, or train on fewer images: --limit-train 10000": (
        "请关闭其他程序，或减少训练图像：--limit-train 10000"
    ),
    "Apple's GPU": "Apple GPU",
    "{}, but PyTorch (built for CUDA {}) cannot use it": "{0}，但 PyTorch（为 CUDA {1} 编译）无法使用它",
    "install the PyTorch that fits the driver: https://pytorch.org/get-started/locally": (
        "请安装与驱动匹配的 PyTorch：https://pytorch.org/get-started/locally"
    ),
    "fine for this course; on Colab: Runtime, Change runtime type, GPU; on a machine with a GPU: its driver": (
        "对本课程没有影响；在 Colab 上：代码执行程序 → 更改运行时类型 → GPU；在有 GPU 的机器上：安装驱动"
    ),
    "none: torch.cuda.is_available() is False, and nvidia-smi finds nothing": (
        "没有：torch.cuda.is_available() 为 False，nvidia-smi 也没有找到"
    ),
    "{}, {}, capability {}.{}": "{0}，{1}，计算能力 {2}.{3}",
    "{} of {} GiB free": "{1} GiB 中有 {0} GiB 空闲",
    "{}, but this PyTorch was built for {}": "{0}，但此 PyTorch 是为 {1} 编译的",
    "install a PyTorch that was built for this GPU: https://pytorch.org/get-started/locally": (
        "请安装为此 GPU 编译的 PyTorch：https://pytorch.org/get-started/locally"
    ),
    "end the programs that hold its memory: nvidia-smi names them": "请结束占用显存的程序：nvidia-smi 会列出它们",
    "{}: too old for CUDA {}, for which this PyTorch was built; it needs {} or newer": (
        "{0}：对于此 PyTorch 所用的 CUDA {1} 太旧；需要 {2} 或更新的版本"
    ),
    "update the driver, or install a PyTorch for an older CUDA: https://pytorch.org/get-started/locally": (
        "请更新驱动，或安装较旧 CUDA 的 PyTorch：https://pytorch.org/get-started/locally"
    ),
    "for ROCm {}, for {}": "为 ROCm {0} 编译，适用于 {1}",
    "for the CPU: it contains no CUDA": "为 CPU 编译：不含 CUDA",
    "for CUDA {}, driver {} or newer, for {}: GPUs such as {}": (
        "为 CUDA {0} 编译，需要驱动 {1} 或更新版本，适用于 {2}：例如 GPU {3}"
    ),
    "this TensorBoard imports pkg_resources, which setuptools 82 removed; TensorBoard 2.21 does without it": (
        "此 TensorBoard 会导入 pkg_resources，而 setuptools 82 已删除该模块；TensorBoard 2.21 不再需要它"
    ),
    "PyTorch {} differs from the newest release in {} behaviours: {}": "PyTorch {0} 与最新版本有 {1} 处行为不同：{2}",
    "a training needs none of them; to have them: python -m pip install --upgrade torch torchvision": (
        "训练不需要这些行为；如需要：python -m pip install --upgrade torch torchvision"
    ),
    "writes events; look at them with: tensorboard --logdir runs": "可以写入事件；查看：tensorboard --logdir runs",
    'python -m pip install --upgrade "tensorboard>=2.21"; an older setuptools is not needed any more': (
        'python -m pip install --upgrade "tensorboard>=2.21"；不再需要旧版 setuptools'
    ),
    "{} cannot be written": "{0} 无法写入",
    "work in a folder of your own": "请在自己的文件夹中工作",
    "{} GiB free in {}": "{1} 中有 {0} GiB 空闲",
    "{} GiB free": "{0} GiB 空闲",
    "make room: CIFAR-10 and some runs take {} GiB": "请腾出空间：CIFAR-10 和几次训练需要 {0} GiB",
    "not under data/": "不在 data/ 下",
    "python scripts/train_full.py --dataset cifar10 --download; without it the embedded Shapes are learned": (
        "python scripts/train_full.py --dataset cifar10 --download；没有它时学习自带的 Shapes"
    ),
    "{} has no {} folder": "{0} 中没有 {1} 文件夹",
    "let it name a folder with train/<class>/ and test/<class>/": "它应当指向含有 train/<类别>/ 和 test/<类别>/ 的文件夹",
    # --help
    "options": "选项",
    "usage:": "用法：",
    "[OPTIONS]": "[选项]",
    " (default: {})": "（默认：{}）",
    "yes": "是",
    "no": "否",
    # words of a command line
    "{} is not an option; see --help": "没有 {0} 这个选项；请看 --help",
    "{} is not an option; similar: {}": "没有 {0} 这个选项；相近的有：{1}",
    "{} is not expected here: options begin with --; see --help": "这里不能有 {0}：选项以 -- 开头；请看 --help",
    "{} takes no value, got {}": "{0} 不带值，得到的是 {1}",
    "{} needs a value: {}": "{0} 需要一个值：{1}",
    "{} must be {}, got {}": "{0} 必须是{1}，得到的是 {2}",
    "a whole number": "整数",
    "a number": "数字",
    "one of {}": "以下之一：{0}",
    "the options cannot be used; see --help": "这些选项无法使用；请看 --help",
    "data": "数据",
    "learning": "学习",
    "computing": "计算",
    "run folder and terminal": "训练文件夹与终端",
    "common": "常用",
    "measurement": "测量",
    "Train the tutorial's network and keep everything needed to resume the training, to repeat it and to predict.": (
        "训练教程中的网络，并保存恢复训练、重复训练和预测所需的一切。"
    ),
    "Without any flag: CIFAR-10 if it is under data/, else the embedded Shapes; 10 epochs of SGD, as in the tutorial.": (
        "不加任何参数时：如果 data/ 下有 CIFAR-10 就使用它，否则使用自带的 Shapes；用 SGD 训练 10 个 epoch，与教程相同。"
    ),
    "auto: CIFAR-10 if there, else Shapes; images: your own, in train/CLASS/* and test/CLASS/*.": (
        "auto：CIFAR-10，没有时为 Shapes；images：自己的图像，在 train/类别/* 和 test/类别/*。"
    ),
    "The folder with the data set.": "数据集所在的文件夹。",
    "Download CIFAR-10 (170 MB) if missing.": "没有 CIFAR-10 时下载（170 MB）。",
    "Addresses of cifar-10-python.tar.gz, tried in this order.": "cifar-10-python.tar.gz 的地址，按此顺序尝试。",
    "The MD5 checksum that cifar-10-python.tar.gz must have; another one allows another archive in the same format.": (
        "cifar-10-python.tar.gz 必须具有的 MD5 校验和；换一个值可以使用同样格式的其他压缩包。"
    ),
    "Skip images that cannot be read, and print their number, instead of stopping.": (
        "跳过无法读取的图像并报告数量，而不是停止。"
    ),
    "Use only the first N training images.": "只使用前 N 张训练图像。",
    "Use only the first N test images.": "只使用前 N 张测试图像。",
    "fast: more accurate in less time.": "fast：用更少的时间达到更高的正确率。",
    "Epochs in total, also with --resume.": "epoch 总数，使用 --resume 时也是。",
    "Images per step.": "每步的图像数。",
    "adam and adamw: learning rate 0.001.": "adam 和 adamw：学习率为 0.001。",
    "Learning rate (step size).": "学习率（步长）。",
    "Share of the accumulated gradient that each step keeps (sgd and muon).": "每步保留的累积梯度的比例（sgd 和 muon）。",
    (
        "Share of the weights that each step subtracts, times the learning rate (sgd, adam: as part of the gradient)."
    ): "每步减去的权重比例，再乘以学习率（sgd、adam：作为梯度的一部分）。",
    (
        "The course of the learning rate. constant; or falling: it rises over the first tenth of the steps and then "
        "falls to 0. Then --learning-rate is the highest rate of a training of 100 steps; it scales with steps^(-1/3)."
    ): (
        "学习率的变化。constant：不变；falling：在前十分之一的步数内上升，然后降到 0。这时 --learning-rate 是 100 步训练的最高值，"
        "并按 步数^(-1/3) 缩放。"
    ),
    "Fix the first layer to the whitened principal components of the images' 5×5 patches instead of training it.": (
        "把第一层固定为图像 5×5 小块的白化主成分，而不训练它。"
    ),
    "Shuffle the training images every epoch. Without it: the stored order every time, as in the tutorial.": (
        "每个 epoch 打乱训练图像。不加时：每次都按存储顺序，与教程相同。"
    ),
    "Mirror half of the training images, drawn anew each time, left to right.": "每次随机选一半训练图像左右翻转。",
    "Shift each training image by up to this number of pixels, drawn anew each time.": (
        "每次把每张训练图像随机平移，最多这么多像素。"
    ),
    "Steps from one train_loss to the next.": "每隔多少步输出一次 train_loss。",
    (
        "Layers and loss to train with: PyTorch's, or the reference's from first principles; both start from the same "
        "weights."
    ): "训练所用的层和损失：PyTorch 的，或 reference 中从基本原理写成的；两者从相同的权重开始。",
    "Seed of the initial weights and of the orders.": "初始权重和顺序的随机种子。",
    (
        "Dtype of the layers' arithmetic; weights, loss and optimizer are float32. auto: bfloat16 if the device has it "
        "and it is faster, else (and for --impl reference) float32. float16: for GPUs without bfloat16; the loss is "
        "scaled."
    ): (
        "各层计算所用的 dtype；权重、损失和优化器为 float32。auto：如果设备支持 bfloat16 且更快就用它，否则（以及 --impl "
        "reference 时）用 float32。float16：用于不支持 bfloat16 的 GPU；损失会被放大。"
    ),
    (
        "Compile the network with torch.compile. graphs: a GPU replays the operations of a step as CUDA graphs. full: "
        "operations are fused as well, which takes long at first."
    ): "用 torch.compile 编译网络。graphs：GPU 以 CUDA graph 重放一步的操作。full：还会融合算子，开始时需要较长时间。",
    "Reject operations without a reproducible implementation. The CPU is reproducible without this flag.": (
        "拒绝没有可复现实现的操作。在 CPU 上不加此参数也可复现。"
    ),
    "auto, cpu, cuda, cuda:N or mps.": "auto、cpu、cuda、cuda:N 或 mps。",
    "CPU threads; by default PyTorch chooses.": "CPU 线程数；默认由 PyTorch 选择。",
    "The run's folder; else runs/DATASET-DATE-TIME.": "训练文件夹；默认为 runs/数据集-日期-时间。",
    "Resume the run in this folder, with its settings.": "用原来的设置恢复此文件夹中的训练。",
    "Keep each Nth epoch's checkpoint besides last.pt and best.pt; 0 keeps none.": (
        "除 last.pt 和 best.pt 外，每隔 N 个 epoch 保留一个检查点；0 表示不保留。"
    ),
    "Draw results.png, confusion.png and mistakes.png after each epoch, and data.png at the start.": (
        "每个 epoch 之后绘制 results.png、confusion.png 和 mistakes.png，开始时绘制 data.png。"
    ),
    "The lines that are printed. tutorial: the tutorial's own lines, to compare with chapters 18 and 21.": (
        "打印的内容。tutorial：教程原来的输出，便于与第 18 章和第 21 章对照。"
    ),
    "Print nothing but the outcome and errors.": "只打印结果和错误。",
    "The language of messages and images: English, Chinese, or that of the system's locale.": (
        "消息和图像的语言：英文、中文，或系统的语言。"
    ),
    "The language of messages: English, Chinese, or that of the system's locale.": "消息的语言：英文、中文，或系统的语言。",
    "Train with the seeds 0, 1, 2, …; print the accuracy: mean ± standard deviation.": (
        "用种子 0、1、2…… 训练，并打印正确率：均值 ± 标准差。"
    ),
    "Number of trainings; at least 2.": "训练次数；至少为 2。",
    "Also without each part of --recipe fast.": "再分别去掉 --recipe fast 的每种成分。",
    "Welch's test against the measurement in this folder.": "与此文件夹中的测量做 Welch 检验。",
    "Predict the class of each image, with the probability of each class.": "预测每张图像的类别，并给出各类别的概率。",
    (
        "The probabilities are the softmax of the network's scores: they sum to one and order the classes, but they are "
        "not calibrated: of the answers given with 80 %, another share than 80 % may be right."
    ): "概率是网络得分的 softmax：总和为 1，并给类别排序，但没有经过校准：以 80 % 给出的答案，实际正确的比例可能不是 80 %。",
    "Image files, and folders with images.": "图像文件，以及含有图像的文件夹。",
    "A run or a checkpoint of one, which holds the names of the classes; by default the newest run in runs/.": (
        "训练文件夹或其中的检查点，类别名来自检查点；默认为 runs/ 中最新的训练。"
    ),
    "files of other programs": "其他程序的文件",
    (
        "The checkpoint is another file of torch.save, a whole network or a state dict, of any PyTorch since 1.0; "
        "nothing in it is run. Without an image: describe its content."
    ): "检查点是其他由 torch.save 写入的文件：整个网络或 state dict，PyTorch 1.0 以来的任何版本；不运行其中的任何内容。不给图像时：说明文件的内容。",
    "With --legacy, the network to use if the file holds several; without it they are listed.": (
        "与 --legacy 一起使用：文件中有多个网络时使用哪一个；不写时列出它们。"
    ),
    (
        "With --legacy, the name of each class in the order of the scores, which such a file lacks. Without names "
        "classes are numbered."
    ): "与 --legacy 一起使用：按得分顺序给出各类别的名称，此类文件中没有这些名称。不写时用编号。",
    (
        "With --legacy, the height and width to resize images to: 32, as in the tutorial, if not given; VGG16 was "
        "trained on 224."
    ): "与 --legacy 一起使用：图像缩放后的高和宽；不写时为 32，与教程相同；VGG16 是用 224 训练的。",
    "Number of classes to print per image.": "每张图像打印多少个类别。",
    "Images computed together.": "一起计算的图像数。",
    "Print one JSON list (docs/predict.schema.json).": "输出一个 JSON 列表（docs/predict.schema.json）。",
    "Also print the scores (logits) and the number of the class, as the tutorial does.": (
        "同时打印得分（logits）和类别编号，与教程相同。"
    ),
    "Write the images with their answers into this PNG file, the first 100 of them.": (
        "把图像及其预测写入此 PNG 文件，最多 100 张。"
    ),
    "Run every Python listing of Markdown documents and notebooks, each in a process of its own without a network.": (
        "运行 Markdown 文档和笔记本中的每段 Python 代码，每段在单独的进程中运行，不使用网络。"
    ),
    (
        "The report says of each listing whether it runs, fails and why, warns, prints something else than the document "
        "says, or needs something that this machine does not have. The exit status is 0 if nothing fails or differs, 1 if "
        "something does, and 2 for an error in the arguments."
    ): (
        "报告说明每段代码能否运行、失败的原因、有无警告、输出是否与文档不符，以及是否需要这台机器没有的东西。没有失败或不符时退出状态为 0，"
        "有则为 1，参数有误时为 2。"
    ),
    "FILE.md, FILE.ipynb, or a folder.": "FILE.md、FILE.ipynb 或文件夹。",
    "Write copies with the known fixes, and run them again.": "写出带有已知修正的副本，并再次运行。",
    "Write the results as JSON.": "把结果写成 JSON。",
    "Write the results as a page that works offline.": "把结果写成可离线查看的网页。",
    "Run each listing alone, as if copied into a new file.": "单独运行每段代码，如同复制到新文件中。",
    "Seconds of a listing until its loops are cut.": "每段代码运行多少秒之后截断循环。",
    "Memory of a listing.": "每段代码的内存。",
    "Write the network of a run as one file, with class names and preprocessing inside, and verify the file.": (
        "把一次训练的网络写成一个文件，其中包含类别名和预处理，并验证该文件。"
    ),
    "The file's answers on 100 images are compared with the network's.": "在 100 张图像上比较文件与网络的输出。",
    "The folder of a run, of which best.pt is taken, or a checkpoint; by default the newest run in runs/.": (
        "训练文件夹（使用其中的 best.pt）或检查点；默认为 runs/ 中最新的训练。"
    ),
    (
        "safetensors: the weights. onnx: for onnxruntime and other runtimes. torch-export: for torch.export.load. "
        "whole-module: chapter 17's method 1, torch.save of the whole network."
    ): "safetensors：权重。onnx：供 onnxruntime 等使用。torch-export：供 torch.export.load 使用。whole-module：第 17 章的方式一，用 torch.save 保存整个网络。",
    "The file to write; by default network.* beside the checkpoint.": "要写入的文件；默认为检查点旁边的 network.*。",
}
"""English messages and their translations; `{}` is a variable part, and `{0}` the first one in Chinese."""

NOUNS: dict[str, str] = {
    "image": "张图像",
    "training image": "张训练图像",
    "test image": "张测试图像",
    "class": "个类别",
    "epoch": "个 epoch",
    "thread": "个线程",
    "GPU": "块 GPU",
    "score": "个得分",
}
"""The nouns of counts, with their measure words."""
