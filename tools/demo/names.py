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

# Other characters of everyday writing: goods that nobody has met are mostly made of them.
EVERYDAY = (
    "丁万丑专丢严丸为举久乌乎乔乘习乱争事于互些交产京亮亲介从仔付代们价任企伍休会伞传伤伪伸似但位住体何作便俄保倍候假做停偷傅傲像充免入共具典养内册冒农冯决净准凉减出分切列刘创刮到刷剧剩力办功务动助努劳勺匈化匙匹区"
    "医午单卜卡卢印危却厂历厉压厌原厦厨参反叔取受变古句叫史号叽合吊同向吕吟吧含吱吴吵吸吹呀告员呱呼命咖咩咬哈哎哞哥哦唐售啄商啡啤啦喂喊喔喜喳喵喽嗡嗨嗯嘎嘴嘿器嚼回因团困围图圆圈圳场圾址坏坦垃型埋基堡堪塘塞填增壁士"
    "处备复失夸夹奖套奥好妇妈始姑姓委姚姜姨威婆婚嫩孔孕存学孩守宋完宗实室害宵宾寄密富察对寻封射将尔尝尼尾局层居屈属岁岖岛岸州巢差己已巴巾币帐帘帚帝带帮常幅幸庄序应底店度座庵康弄式引弯弱录形彩彭往径待徐忘忙念忽怎怕"
    "急性怪总恋恭息恶悄悔您悯悲情惯惰想意愚感愿慌懂懒戏戒战戴户所扇才扑托扣扬扰批找抄抓抖抗折抢报披抱抵抽担拆拌拍拒拔拖拜拥括拳拼拾持指按挑挝挡挣挤挪捎换据掉排接提插搜搞搬摄摇摔摩撑擅操擦攒收改攻故敌救教敢散敦数整"
    "断施旅旗无旦时旷易昨显晒普暂暑曲更曹曼曾替服望未末术朱朵杂杜束杨板极枕枚枯架柚查柿校样核格案桶梁梳检棍棒植椒楂概榨榴樊模橘橡檐欠次款歇歉歌正步死段每比毕毛永汁求汗池汪汽沈沉治泊法泡注泰泳洞活流浆浇济浒浙浮浴涂"
    "消涣涨液淋淡混添渔渥温渴渺滑满滨漆演漠澳激炒炭炸点炼烛烟烤烦烧煎煤照煮煸熟熬爆爬爷爸片版牌牧物犯狮猜率玩玫现班球瑰甘用由畔留疫疼病症登皂皮盆盏盖盛直相省眠眼睛知矿码研破确碰示礼祝神票祸离种科秒秘秦积称稿究穷空"
    "穿窝竖竟笋笨等筑筝签算管箭篇篮篷粉粽糊糕糙系素紧累繁约级练绅终绍结绕给络绝统续绳编缝缩缺网罗置美翅翻考者耍耐聊职联聚肚股肥肪肮肯肺胆胡胶脂脏脑脚脸腊腐膏臭舅舍舞般舰艘芹芽苏苔苹茄茫荐药莓莫菇菠萄萝营萧萨落葡董"
    "葱蒋蒜蒸蔡蕉薛薯藕蘑虚虹虽蚂蚊蚕蛙蛛蜗蜘蜜蜡蝴螃血行补表袁袖被裁裂装裙裤见规视觉角解警计订认讨让讯记讲论设证评识诉词译试话诞该误诵请课调谢谱谷负财责败货贫购贯贴贵费贺贾资赔赚赛赢赵赶起趴距蹈身转轼较辆输辛边辽"
    "迁过运进迷追退适逆选透递通逛造遍邓那邮邻郊郑郭都配酱采释钉钟钢钥钩钱铅链锁错锡锤锻镜闭闲间闹阎队防阿陆陈降陕陡院除险陪陶随隔难雅集需青非靠革韩韭音页顶项顾顿预领题颠食餐饨饱饺饿馄馆馋馒首驴驼骂骄骆验骑骗骨魏鱿"
    "鲁鲈鲜鲸鸦鹊鹌鹑鹳麻黎齐齿")


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
