"""Names: of one- and two-character surnames, nicknames, Latin ones, and now and then with characters that are rare."""
from tools.demo import words
from tools.demo.hold import held, held_string

COMPOUND = "欧阳 司马 上官 诸葛 慕容 皇甫 尉迟 令狐 东方 夏侯 公孙 司徒 南宫 端木 独孤 长孙".split()
MORE_SURNAMES = "任姚方石姜范金陆廖邹熊孟秦白江尹段雷侯龙史陶黎贺顾毛郝龚邵万钱严武戴莫孔向汤温康施文牛樊葛邢安齐庄伍项祝童欧简季阮柯"
PREFIXES = ("小", "老", "阿", "大")
SUFFIXES = ("哥", "姐", "叔", "老师", "同学", "宝")
LATIN = (
    "Alice Bob Tom Jerry Lucy Lily Jack Rose Mike John Mary Anna Ben Leo Max Eric Amy Emma Tina Peter Paul Sam Kate "
    "David "
         "Helen Grace Jim Jane Frank Linda Susan Henry Nina Oscar Ivy Owen Ray Vivian Sophia Daniel").split()
ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr gr kr sh st th tr".split()
VOWELS = "a e i o u ai ea ee ia io".split()


# Characters that names are made of, beyond words.GIVEN; the puzzles use some of them, too, so that each is met often
# enough to be copied.
RARE = ("嫣妍妮娇娅婉婷娴姗姝妤妙姿娣婵嫦嫚媚嬅珊珂珏珑珠琦琛琨琅琬瑜瑛瑾璇璐璟璞瓅玥玲玮珺"
        "昊昕昀昱晗晟晖晔晰暄暖曦曜昂昌昆晋景智暘旭旺旻炎炜烨焕煜熙熠燕灿炫烁煊"
        "沐沛沁泓泽洁洛津浦浪涓涵淇淑淳清渊渝湘源溪滢漪潇潮澄澍濡瀚洵浚润汐沅沂"
        "柏栋栩桐桑梧棠楠楷榕槿樱橙檀权朴杉枝柔桦栀森"
        "芃芊芝芷苒苓苗茉茜茵荃莎莹菀菁葵蒙蓁蓓蔓蕙蕴薰藜蘅芮芯苑茹芬"
        "翊翔翠翰翼骁骏骐骥驰驿鸣鸿鹃鹭鹤鸾麒麟凰豹"
        "宸宥宣宪宽容宙寅寒寿岚岩岭岳峥峻崇崎嵘嵩岱"
        "彦彬彰影征微徽德忆忠怀怡恒恩恬悟悠惠惜愉慈慧慕懿愫"
        "承抒振捷掌政敖敬斐斌斓旋朗朔朝本杭"
        "钊钧铎铠铮锋锐锦镇鑫钰铃铄"
        "阔陌隆隽霁霄霆霓霖露靖靓韬韵颂颖颜顺颐"
        "世丞业丰中义之仁仪伟伦佐佑佩侠俊信修倩值儒元先光克全兴其冠冬凌凡凯初利勉勋包千升卓协南博友可"
        "吉名君启周和品哲唯善嘉国圣坚坤垚培堂壮夕夫奇奕如妃孟季宁安定宝尚尧展山川工巧帅帆平年幻广延弘"
        "弦当彤彪律恺成执拓挺斯方昭晏树柳棋楚殿毅民水汉沙灵然特献理甜甫田电男界畅真睦石碧祖祥祯福禾秀秋程稳穆立竣章童笑笛简粒精纪纯纲纳经继维绮绿缘罡羲群"
        "欧阳司马上官诸葛慕容皇甫尉迟令狐东方夏侯公孙徒南宫端木独孤长"
        "老耀聘肃胜能自致舟航良艾若英范荆菡葆虎衡裕褚西言训许诚诺谊谦贤赋赫超越路载辉达迅迎远连迪逸道邦郁部酉里野量长闻问闯")


def given(rng, length):
    return "".join(rng.choice(RARE if rng.random() < 0.3 else words.CHARACTERS if rng.random() < 0.15 else words.GIVEN)
                   for _ in range(length))


def latin(rng):
    if rng.random() < 0.5:
        name = rng.choice(LATIN)
    else:
        name = "".join(rng.choice(ONSETS) + rng.choice(VOWELS)
                       for _ in range(rng.choice((1, 2, 2, 3)))) + rng.choice(("", "n", "s", "l"))
    return rng.choice((name.capitalize(), name.capitalize(), name.capitalize(), name.lower(), name.upper()))


def any_characters(rng):
    """Two to four characters that no surname begins: what somebody calls themselves need not look like a name."""
    return "".join(rng.choice(RARE + words.GIVEN + words.CHARACTERS) for _ in range(rng.choice((2, 2, 3, 3, 4))))


def draw_name(rng):
    kind = rng.random()
    if kind < 0.44:
        return rng.choice(words.SURNAMES + MORE_SURNAMES) + given(rng, rng.choice((1, 2, 2)))
    if kind < 0.56:
        return rng.choice(COMPOUND) + given(rng, rng.choice((1, 2)))
    if kind < 0.68:
        return any_characters(rng)
    if kind < 0.73:
        return rng.choice(PREFIXES) + given(rng, 1)
    if kind < 0.77:
        return rng.choice(words.SURNAMES) + rng.choice(SUFFIXES)
    if kind < 0.8:
        return given(rng, 1) * 2
    return latin(rng)


def rare_word(rng):
    """Two to five characters that mean nothing together, many of them rare."""
    word = dict.fromkeys(rng.choice(rng.choice((RARE, RARE, words.GIVEN, words.CHARACTERS)))
                         for _ in range(rng.choice((2, 3, 4, 5))))
    return "".join(word) if not held_string("".join(word)) else "山水"


def held_name(name):
    """Held out where any two neighbouring characters are (of a Latin name the first two letters): a held-out name is
    then in no other."""
    pairs = [name[:2].lower()] if name.isascii() else [name[i:i + 2] for i in range(len(name) - 1)]
    return any(held("name", pair, 0.05) for pair in pairs)
