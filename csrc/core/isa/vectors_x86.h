/* vectors_x86.h: what vectors of 256 and of 512 bits have alike. MM(name) is the intrinsic of that width; lanes_ps, lanes_pd
 * and vec_pairs are its types. */

VECTOR_FN vec_f32 vset_f32(float a)
{
    return (vec_f32)MM(set1_ps)(a);
}
VECTOR_FN vec_f64 vset_f64(double a)
{
    return (vec_f64)MM(set1_pd)(a);
}
VECTOR_FN vec_f32 vmax_f32(vec_f32 a, vec_f32 b)
{
    return (vec_f32)MM(max_ps)((lanes_ps)a, (lanes_ps)b);
}
VECTOR_FN vec_f64 vmax_f64(vec_f64 a, vec_f64 b)
{
    return (vec_f64)MM(max_pd)((lanes_pd)a, (lanes_pd)b);
}
VECTOR_FN vec_f32 vmin_f32(vec_f32 a, vec_f32 b)
{
    return (vec_f32)MM(min_ps)((lanes_ps)a, (lanes_ps)b);
}
VECTOR_FN vec_f64 vmin_f64(vec_f64 a, vec_f64 b)
{
    return (vec_f64)MM(min_pd)((lanes_pd)a, (lanes_pd)b);
}
VECTOR_FN vec_f64 vrcp_f64(vec_f64 a)
{
    return 1 / a;
}

VECTOR_FN vec_pairs pset(int32_t w)
{
    return MM(set1_epi32)(w);
}
VECTOR_FN vec_f32 pfloat(vec_pairs a)
{
    return (vec_f32)MM(cvtepi32_ps)(a);
}
VECTOR_FN vec_pairs pround(vec_f32 v)
{
    return MM(cvtps_epi32)((lanes_ps)v);
}
VECTOR_FN vec_pairs plow(vec_pairs a)
{
    return a & pset(0xffff);
}
VECTOR_FN vec_pairs pjoin(vec_pairs low, vec_pairs high)
{
    return low | MM(slli_epi32)(high, 16);
}
